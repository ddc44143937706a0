"""Two MPI hosts on one machine, for tests: network namespaces joined by a virtual Ethernet cable.

Each host has its own network (lo and eth0), hostname and /dev/shm, so that an MPI library finds two machines: shared
memory inside a host, TCP between them. Both live in a process namespace whose first process, "the room", reads from
a pipe that we hold. When the pipe closes (the context ends, or this process dies in any way) the room ends, and the
kernel kills every process in it and removes hosts, cable and addresses. Nothing has a global name.

    python tests/two_hosts.py --mpi openmpi --ranks 2 -- python -c "import os; print(os.uname().nodename)"
    python tests/two_hosts.py --ranks 0 -- hpcasync bench wire
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MPI: Literal["openmpi", "mpich"] = "openmpi" if Path(sys.prefix, "bin", "prterun").exists() else "mpich"
HOSTS = ("h1", "h2")
ADDRESSES = ("10.77.0.1", "10.77.0.2")  # they exist inside the two hosts only

# Makes the hosts, prints the room's process id as the outer world knows it, and stays until stdin closes.
# $1 is a folder of ours, $2 the cable's rate in Mbit/s (empty: unlimited).
_ROOM = """
set -e
read -r room _ </proc/self/stat         # this /proc is still the outer one
mount -t proc proc /proc
mount --bind "$1/hosts" /etc/hosts
folder=$1
patient() {                             # waits about 5 s for the condition, then gives up
    tries=500
    until eval "$1"; do
        [ "$((tries -= 1))" -gt 0 ]
        sleep 0.01
    done
}
for host in h1 h2; do
    unshare --net --uts --ipc --mount sh -ec '
        hostname "$2"
        mount -t sysfs sysfs /sys       # lists the devices of this network; UCX reads it
        mount -t tmpfs -o mode=1777 shm /dev/shm
        ip link set lo up
        echo $$ >"$1/$2.tmp" && mv "$1/$2.tmp" "$1/$2"
        exec sleep infinity' host "$1" "$host" </dev/null >/dev/null &
done
patient 'test -e "$folder/h1" && test -e "$folder/h2"'
h1=$(cat "$1/h1") h2=$(cat "$1/h2")
nsenter --target "$h1" --net ip link add eth0 type veth peer name eth0 netns "$h2"
for host in 1 2; do
    in_host="nsenter --target $(cat "$1/h$host") --net"
    $in_host ip address add "10.77.0.$host/24" dev eth0
    $in_host ip link set eth0 up
    if [ -n "$2" ]; then
        $in_host tc qdisc add dev eth0 root tbf rate "$2mbit" burst 256kb latency 50ms
    fi
done
for host in 1 2; do                     # the kernel reports the cable as plugged in a moment later;
    in_host="nsenter --target $(cat "$1/h$host") --net"
    patient '$in_host ip link show dev eth0 | grep -q "state UP"'  # until then UCX uses lo and reaches nobody
done
echo "$room"
cat >/dev/null                          # not exec: as a shell, the first process reaps orphans
rm -rf "$1"                             # should nobody be left to do it
exit 0
"""

# Stands in for ssh: AGENT [options] HOST WORDS..., run from inside the room.
_AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$(cat "$(dirname "$0")/$1")
shift
exec nsenter --target "$host" --net --uts --ipc --mount sh -c "$*"
"""


@dataclass(frozen=True)
class TwoHosts:
    """``env`` is the environment that :meth:`command`'s lines want; ``room`` the process id they enter."""

    folder: Path
    room: int
    env: dict[str, str]

    def command(
        self, mpi: Literal["openmpi", "mpich"], ranks_per_host: int, argv: Sequence[str], *options: str
    ) -> list[str]:
        """The line that runs ``argv`` with ``ranks_per_host`` ranks on each host; ``options`` go to the launcher."""
        agent, slots = str(self.folder / "agent"), ",".join(f"{host}:{ranks_per_host}" for host in HOSTS)
        unbound = ["--bind-to", "none"]  # each host would bind its first rank to the same first core of this machine
        launcher = {
            "openmpi": ["mpirun", "--prefix", sys.prefix, *unbound, "--mca", "plm_ssh_agent", agent, "--host", slots],
            "mpich": ["mpiexec", "-launcher", "ssh", "-launcher-exec", agent, "-hosts", slots],
        }[mpi]
        launcher[0] = str(Path(sys.prefix, "bin", launcher[0]))
        return self.inside(HOSTS[0], [*launcher, "-n", str(ranks_per_host * len(HOSTS)), *options, *argv])

    def inside(self, host: str, argv: Sequence[str]) -> list[str]:
        """The line that runs ``argv`` on one host, in this process's working directory."""
        # When the line's own process is killed, as by a timeout, the launcher inside is told to end its ranks.
        enter = ["nsenter", "--target", str(self.room), "--mount", "--pid", "--net", "setpriv", "--pdeathsig", "TERM"]
        there = 'host=$(cat "$1/$2"); cd "$3"; shift 3; exec nsenter --target "$host" --net --uts --ipc --mount "$@"'
        keep_directory = ["sh", "-c", 'cd "$0" && exec "$@"', str(Path.cwd())]
        return [*enter, "sh", "-c", there, "sh", str(self.folder), host, "/", *keep_directory, *argv]


@functools.cache
def why_not() -> str | None:
    """Why this machine cannot hold two hosts, or None when it can."""
    if os.geteuid() != 0:
        return "two hosts need network namespaces, and making them needs root"
    missing = [tool for tool in ("ip", "tc", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"two hosts need {', '.join(missing)} (on Debian: apt-get install iproute2 util-linux)"
    spaces = ["unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--mount-proc"]
    trial = subprocess.run([*spaces, "ip", "link", "add", "type", "veth"], capture_output=True, text=True)
    if trial.returncode:
        return f"two hosts cannot be made here: {trial.stderr.strip()}"
    return None


@contextlib.contextmanager
def two_hosts(megabits_per_second: int | None = None) -> Iterator[TwoHosts]:
    """Two hosts until the context ends; then they and every process in them are gone.

    ``megabits_per_second`` limits the cable in each direction. Raises OSError when they cannot be made (``why_not``).
    """
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as name:
        folder = Path(name)
        lines = [f"{address} {host}" for address, host in zip(ADDRESSES, HOSTS, strict=True)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        (folder / "agent").write_text(_AGENT)
        (folder / "agent").chmod(0o700)
        (folder / "open_mpi_hosts").write_text("".join(f"{host} slots=1\n" for host in HOSTS))
        (folder / "mpich_hosts").write_text("".join(f"{host}:1\n" for host in HOSTS))
        rate = "" if megabits_per_second is None else str(megabits_per_second)
        spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net"]
        with subprocess.Popen(
            [*spaces, "sh", "-c", _ROOM, "room", name, rate],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        ) as room:  # leaving this block closes the pipe and waits for the room's end
            assert room.stdout is not None
            inner = room.stdout.readline().strip()
            if not inner:
                raise OSError(f"two hosts could not be made: {why_not() or 'see the lines above'}")
            yield TwoHosts(folder, int(inner), _environment(folder))


def _environment(folder: Path) -> dict[str, str]:
    """Ours, and what the MPI libraries want to know: root is meant, TCP between hosts, more ranks than cores.

    A launcher that is started inside, and is told of no hosts, finds both.
    """
    agent = str(folder / "agent")
    hosts = {
        "PRTE_MCA_plm_ssh_agent": agent,
        "PRTE_MCA_prte_default_hostfile": str(folder / "open_mpi_hosts"),
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": agent,
        "HYDRA_HOST_FILE": str(folder / "mpich_hosts"),
    }
    # Open MPI names its session folder by hostname and process id, and both repeat from one room to the next.
    sessions = {"TMPDIR": str(folder)}
    open_mpi = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm,tcp",
        "OMPI_MCA_osc": "^ucx",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    return {**os.environ, **hosts, **open_mpi, **sessions, "OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command under MPI on two hosts of this machine's own.")
    parser.add_argument("--mpi", choices=("openmpi", "mpich"), default="openmpi")
    parser.add_argument("--ranks", type=int, default=2, help="per host; 0: run COMMAND on the first host, by itself")
    parser.add_argument("--megabits-per-second", type=int)
    parser.add_argument("argv", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        parser.error(reason)
    with two_hosts(options.megabits_per_second) as hosts:
        line = hosts.command(options.mpi, options.ranks, options.argv)
        if options.ranks == 0:
            line = hosts.inside(HOSTS[0], options.argv)
        return subprocess.run(line, env=hosts.env).returncode


if __name__ == "__main__":
    sys.exit(main())
