"""Run a rank's program, and let the other ranks hear of its end: python guard.py COMMAND ...

Open MPI 5.0.11 (mpirun --with-ft ulfm) tells the others about a rank that leaves with exit code 0 or dies by SIGKILL.
About one that leaves with another code, by a C library's exit(1) for example, it tells nobody, and they wait for ever.
So the guard of such a rank sends itself SIGKILL. And MPI_Init waits for ever for a rank that has died before it: then
the guard says so, and `hpcasync run` ends the job.

A program writes a byte to the file descriptor $HPCASYNC_GUARD when MPI has started, and another one when it leaves with
an exit code that all know of (hpcasync/mpi/guarded.py): that code is the guard's, too.

Uses nothing but the standard library: it is run as a file, once per rank, before anything else.
"""

import ctypes
import os
import signal
import sys

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
UP, LEAVING = b"u", b"l"
_PR_SET_PDEATHSIG = 1

die_with_parent = ctypes.CDLL(None).prctl


def start(command: list[str], words: int) -> int:
    """The pid of a child that runs ``command`` and writes to the file descriptor ``words``."""
    me = os.getpid()
    child = os.fork()
    if child == 0:
        die_with_parent(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        os.setpgid(0, 0)  # a launcher that signals its child's group reaches the guard alone, which passes it on once
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.set_inheritable(words, True)
        os.environ["HPCASYNC_GUARD"] = str(words)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"hpcasync: error: {command[0]}: {error.strerror}\n".encode())
            os._exit(127)
    return child


def forward(child: int) -> list[int]:
    """Pass signals on to ``child``; the list of those that have come."""
    come: list[int] = []

    def pass_on(number: int, _: object) -> None:
        come.append(number)
        os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    return come


def told(words: int) -> bytes:
    """What the program has written; its own children may still hold the other end."""
    os.set_blocking(words, False)
    try:
        return os.read(words, 100)
    except BlockingIOError:
        return b""


def say(line: str) -> None:
    os.write(2, f"hpcasync: {line}\n".encode())


def main() -> None:
    die_with_parent(_PR_SET_PDEATHSIG, signal.SIGKILL)  # mpirun killed: no rank shall go on
    ours, theirs = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = start(sys.argv[1:], theirs)
    os.close(theirs)
    come = forward(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    words = told(ours)
    if code == 0 or LEAVING in words:
        os._exit(max(code, 0))
    rank = os.environ.get("PMIX_RANK", "?")
    how = f"exit code {code}" if code > 0 else signal.strsignal(-code)
    if not {signal.SIGINT, signal.SIGTERM} & set(come):  # else the launcher ends the job
        if UP in words:
            say(f"lost rank {rank}: {how}")
        else:
            say(f"error: a rank has ended before MPI had started ({how})")
    signal.raise_signal(signal.SIGKILL)


if __name__ == "__main__":
    main()
