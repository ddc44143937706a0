"""The benches: what each of them launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from tyro.conf import arg

from hpcasync.bench import survival, training, verbs, wire
from hpcasync.bench.launches import Launch
from hpcasync.bench.options import PEERS, Options, counts, names, ranks
from hpcasync.bench.training import LOCKSTEP, NONE
from hpcasync.errors import UsageError
from hpcasync.strategies import STRATEGIES

STEP_SECONDS = 0.02
SLOW_FACTOR = 4.0
PROGRESS = "HPCASYNC_PROGRESS"  # hpcasync.mpi.progress.OPTION: importing that would initialize MPI in this process
POST_COLLECTIVES = ("stale", "as_ready")  # of the strategies that bench overlap measures by default
QUICK_SHARE = 0.1  # of the time that is measured otherwise

# Exponential step times vary as much as they last, so they are measured for longer.
STRAGGLER_CASES: dict[str, dict[str, Any]] = {
    "sleep": {"workload": "mlp 1 M", "slow_factor": SLOW_FACTOR, "step_seconds": STEP_SECONDS, "seconds": 4.0},
    "cnn": {"workload": "cnn 1 M", "slow_factor": SLOW_FACTOR, "step_seconds": STEP_SECONDS, "seconds": 4.0},
    "jitter": {"workload": "mlp 1 M", "jitter": "exponential", "step_seconds": STEP_SECONDS, "seconds": 8.0},
    "compute": {
        "workload": "cnn 1 M, 64 samples",
        "slow_factor": SLOW_FACTOR,
        "computed": True,
        "seconds": 8.0,
    },
}


@dataclass(kw_only=True)
class Training(Options):
    """Options of the benches that train."""

    references: ClassVar = dict.fromkeys((NONE, LOCKSTEP, *PEERS["horovod"], *PEERS["ddp"]), training.METRIC)

    def training(self, size: int, case: str, seconds: float, **settings: Any) -> list[Launch]:
        """One launch per subject: no exchange at all, the strategies, these in other environments, the peers."""
        seconds = seconds * (QUICK_SHARE if self.quick else 1)
        warmup_seconds = seconds / 4
        peers = self.peer_environments()
        own: dict[str, dict[str, str]] = {subject: {} for subject in (NONE, *self.chosen_strategies())}
        subjects = own | self.variants() | peers
        return [
            Launch(
                case=case,
                subject=subject,
                metric=training.METRIC,
                unit=training.UNIT,
                measure="training",
                ranks=size,
                options={
                    "case": case,
                    "subject": subject,
                    "seconds": seconds,
                    "warmup_seconds": warmup_seconds,
                    **settings,
                },
                seconds=warmup_seconds + seconds,
                peer=subject in peers,
                environment=environment,
            )
            for subject, environment in subjects.items()
        ]

    def variants(self) -> dict[str, dict[str, str]]:
        """{subject: environment} of strategies that are measured once more."""
        return {}


@dataclass(kw_only=True)
class Straggler(Training):
    """Options of bench straggler."""

    name: ClassVar = "straggler"
    example: ClassVar = "hpcasync bench straggler --ranks 4 --peers horovod,ddp"
    default_strategies: ClassVar = (
        "eager bound=8", "downpour push=4 pull=4", "downpour", "hogwild", "sync", "stale"
    )  # fmt: skip

    ranks: Annotated[int, arg(metavar="N")] = 4
    """How many ranks; the last one is four times slower."""
    cases: Annotated[str, arg(metavar="NAME,...")] = ",".join(STRAGGLER_CASES)
    """sleep, cnn: steps of 20 ms, mostly slept; jitter: of exponential length; compute: computed four times."""

    def launches(self) -> list[Launch]:
        """How much of the ranks' speed is left when one of them is four times slower, or all are now and then?

        Subject `none` exchanges nothing: the ideal sum of speeds. Subject `lockstep` is computed from it: ranks that
        all wait for the slowest in every step."""
        cases = names("--cases", self.cases, list(STRAGGLER_CASES))
        size = ranks(self.ranks, 2)
        return [launch for case in cases for launch in self.training(size, case, **STRAGGLER_CASES[case])]


@dataclass(kw_only=True)
class Overlap(Training):
    """Options of bench overlap."""

    name: ClassVar = "overlap"
    example: ClassVar = "hpcasync bench overlap --peers horovod,ddp --json overlap.json"
    default_strategies: ClassVar = ("hogwild", "downpour push=4 pull=4", "stale", "as_ready")

    ranks: Annotated[int, arg(metavar="N")] = 2
    """How many ranks."""

    def launches(self) -> list[Launch]:
        """How much does exchanging cost ranks of equal speed? An MLP of 6.6 M parameters, AdamW, 64 samples a step.

        Subject `none` exchanges nothing. What strategies that post collectives lose or gain by the progress thread is
        shown by those without it."""
        return self.training(ranks(self.ranks, 1), f"{self.ranks} ranks", 8.0, workload="mlp 6.6 M")

    def variants(self) -> dict[str, dict[str, str]]:
        posting = [text for text in self.chosen_strategies() if text.split()[0] in POST_COLLECTIVES]
        return {text + training.NO_THREAD: {PROGRESS: "none"} for text in posting}


@dataclass(kw_only=True)
class Scaling(Training):
    """Options of bench scaling."""

    name: ClassVar = "scaling"
    example: ClassVar = "hpcasync bench scaling --ranks 1,2,4,8 --step-seconds 0.05"
    default_strategies: ClassVar = ("eager bound=8", "downpour", "hogwild", "sync", "stale")

    ranks: Annotated[str, arg(metavar="N,...")] = "1,2,4"
    """The numbers of ranks."""
    step_seconds: Annotated[float, arg(metavar="S")] = STEP_SECONDS
    """What a step is padded to by sleeping, so that ranks may outnumber the cores; 0 for bare computing."""

    def launches(self) -> list[Launch]:
        """Samples per second by the number of ranks; an MLP of 1 M parameters.

        Subject `none` exchanges nothing."""
        if not 0 <= self.step_seconds < math.inf:
            raise UsageError(f"--step-seconds {self.step_seconds}: it must be 0 or more, and finite")
        seconds = max(4.0, 100 * self.step_seconds)
        return [
            launch
            for size in counts("--ranks", self.ranks)
            for launch in self.training(size, _ranks(size), seconds, workload="mlp 1 M", step_seconds=self.step_seconds)
        ]


@dataclass(kw_only=True)
class Verbs(Options):
    """Options of bench world."""

    name: ClassVar = "world"
    example: ClassVar = "hpcasync bench world --ranks 2,4 --peers horovod,ddp"
    references: ClassVar = {
        verbs.COPY: verbs.BANDWIDTH,
        **dict.fromkeys((verbs.MPI_RAW, *PEERS["horovod"], verbs.GLOO), verbs.ALLREDUCE),
    }
    default_strategies: ClassVar = ("eager bound=8", "downpour", "hogwild", "sync", "stale", "as_ready")

    ranks: Annotated[str, arg(metavar="N,...")] = "2,4"
    """The numbers of ranks of the allreduce; everything else is measured with 2."""

    def launches(self) -> list[Launch]:
        """What the World's verbs cost on one node.

        Push and pull against a plain copy of as many bytes; allreduce against MPI's own in place, Horovod's and gloo's
        (--peers ddp); a push to a rank that computes for half a second; a strategy's step() beyond the optimizer's."""
        rounds = 2 if self.quick else 7
        windows = [1 << 20] if self.quick else [size << 20 for size in (1, 4, 16, 64)]
        buffers = [4 << 10, 1 << 20] if self.quick else [size << 10 for size in (4, 64, 1024, 4096, 16384, 65536)]
        peers = {verbs.GLOO if name == "ddp" else name: found for name, found in self.peer_environments().items()}
        found = [
            Launch("push and pull", verbs.OURS, verbs.BANDWIDTH, "GB/s", "one sided", 2,
                   {"sizes": windows, "rounds": rounds}, 20.0),
            Launch("busy target", verbs.OURS, verbs.BUSY, "ms", "busy target", 2, {"rounds": rounds}, 10.0),
        ]  # fmt: skip
        for size in counts("--ranks", self.ranks):
            for reducer in (verbs.OURS, *peers):
                found.append(
                    Launch(f"allreduce, {_ranks(size)}", reducer, verbs.ALLREDUCE, "µs", "allreduce", size,
                           {"subject": reducer, "sizes": buffers, "rounds": rounds}, 30.0,
                           peer=reducer in peers, environment=peers.get(reducer, {}))
                )  # fmt: skip
        for text in self.chosen_strategies():
            found.append(
                Launch("step of 10 k parameters", text, verbs.STEP, "µs", "step cost", 2, {"subject": text}, 10.0)
            )
        return found


@dataclass(kw_only=True)
class Wire(Options):
    """Options of bench wire."""

    name: ClassVar = "wire"
    example: ClassVar = "hpcasync bench wire --repeats 5"
    references: ClassVar = {wire.SENDRECV: wire.TIME}
    default_strategies: ClassVar = ()

    def launches(self) -> list[Launch]:
        """What windows cost between two nodes, against MPI's own messages and windows; one rank on each.

        For an allocation of two nodes, or with hosts that the MPI library's own variables name. Also a push to a rank
        that computes for half a second without entering MPI."""
        if self.strategies is not None or self.chosen_peers():
            raise UsageError("bench wire: --strategies and --peers say nothing here: it measures windows and raw MPI")
        rounds = 3 if self.quick else 15
        sizes = [1 << 20] if self.quick else [size << 20 for size in (1, 4, 16)]
        return [
            Launch("between nodes", wire.PUSH, wire.TIME, "ms", "between nodes", 2,
                   {"sizes": sizes, "rounds": rounds}, 20.0, apart=True),
            Launch("busy target", verbs.OURS, verbs.BUSY, "ms", "busy target", 2,
                   {"rounds": rounds}, 10.0, apart=True),
        ]  # fmt: skip


@dataclass(kw_only=True)
class Survival(Options):
    """Options of bench survival."""

    name: ClassVar = "survival"
    example: ClassVar = "hpcasync bench survival --repeats 10"
    references: ClassVar = {}
    default_strategies: ClassVar = tuple(STRATEGIES)

    ranks: Annotated[int, arg(metavar="N")] = 4
    """How many ranks."""
    cases: Annotated[str, arg(metavar="NAME,...")] = f"{survival.KILLED},{survival.UNDISTURBED}"
    """killed: each repeat kills another rank, in another step; undisturbed: the same run without a death."""

    def launches(self) -> list[Launch]:
        """Do the others finish the run when a rank is killed (SIGKILL)? An MLP learns digits; Open MPI only.

        `survived` is 1 for a run that ended well, `pause` how long the survivors made no step."""
        cases = names("--cases", self.cases, (survival.KILLED, survival.UNDISTURBED))
        size = ranks(self.ranks, 2)
        if self.chosen_peers():
            raise UsageError(f"--peers {self.peers}: a death ends the runs of Horovod and DDP: nothing to measure")
        return [
            Launch(case, subject, survival.ACCURACY, "", survival.MEASURE, size, {}, 30.0)
            for subject in self.chosen_strategies()
            for case in cases
        ]


def _ranks(size: int) -> str:
    return f"{size} rank" if size == 1 else f"{size} ranks"


BENCHES: dict[str, type[Options]] = {
    bench.name: bench for bench in (Verbs, Wire, Overlap, Straggler, Scaling, Survival)
}
