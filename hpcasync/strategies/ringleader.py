"""A table of every rank's last gradients, for ranks with different data: rounds in which each brings one update."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcasync.replica import Replica
from hpcasync.staleness import Ledger, Policy
from hpcasync.strategies.server import Server
from hpcasync.strategies.server_part import Table
from hpcasync.world import World


class _Rows(Policy):
    """A rank's contributions are averaged first, then the ranks."""

    collects = True
    by_rank = True

    def complete(self, ledger: Ledger) -> bool:
        return not bool((ledger.counts[ledger.active > 0] == 0).any())


class Ringleader(Server):
    """Ringleader ASGD: every update is a mean over all ranks' gradients, so none pulls harder for being faster.

        x <- x - gamma (1/n) Σ_i (1/B_i) Σ_{j <= B_i} g_ij

    Rounds of two phases, in which rank r brings g:

    1. until every rank has a row: g goes into the row of r. The gradient that completes the table makes an update.
    2. until every rank has brought one update: g goes into the row of r, and the table makes an update; if r has
       brought its own already, g goes into the next round's table, and nothing is updated.

    Maranjyan and Richtárik, "Ringleader ASGD: The First Asynchronous SGD with Optimal Time Complexity under Data
    Heterogeneity", 2025 (https://arxiv.org/abs/2509.22860). No gradient is thrown away, and delays stay below 2 n - 1.
    Where ``server.py`` does everything else: see there for where things lie and who makes the updates.

    Args:
        owner, push, pull: as of ``server``.
    """

    def __init__(
        self,
        replica: Replica,
        world: World,
        optimizer: torch.optim.Optimizer,
        owner: str = "given",
        push: int = 1,
        pull: int = 1,
    ) -> None:
        super().__init__(replica, world, optimizer, "", owner, push, pull)
        n = world.size
        self._rounds = world.window(
            (1 + 2 * n) * (world.rank == 0), torch.int64
        )  # [round, due_r ..., next counts_r ...]
        self._seen, self._told = (torch.zeros(1 + 2 * n, dtype=torch.int64) for _ in range(2))
        self._due, self._next_counts = self._seen[1 : n + 1], self._seen[n + 1 :]
        self._next = [Table(world, part.pair.params, by_rank=True) for part in self._parts]
        self._round = torch.zeros(1, dtype=torch.int64)  # which this rank's rows belong to
        world.barrier()

    @staticmethod
    def _parse(text: str, ranks: int) -> Policy:
        return _Rows()

    def _use(self, ledger: Ledger) -> bool:
        self._look()
        me, second_phase = self.world.rank, bool(self._due.any())
        if second_phase and not self._due[me]:
            self._collect(self._next, self._next_counts)
        else:
            self._collect([part.table for part in self._parts if part.table], ledger.counts)
            self._board.count()
            if not second_phase and self.policy.complete(ledger):
                self._due.copy_(ledger.active)
            if self._due[me]:
                self._due[me] = 0
                self._update_by_table(ledger)
                self._end_round_if_all_have_updated(ledger)
        self._tell()
        return False

    def _leave(self) -> None:
        with self._board.attention():
            self._board.set_active(False)
            self._look()
            if self._due[self.world.rank]:
                self._due[self.world.rank] = 0
                self._end_round_if_all_have_updated(self._board.read())
            self._tell()

    def _collect(self, tables: list[Table], counts: Tensor) -> None:
        me = self.world.rank
        for part, table in zip(self._parts, tables, strict=True):
            table.add(part.pair.grads, int(counts[me]))
        counts[me] += 1

    def _update_by_table(self, ledger: Ledger) -> None:
        for part in self._parts:
            part.see_mean(int((ledger.counts > 0).sum()))
        self._update()
        for part in self._parts:
            part.see_own()

    def _end_round_if_all_have_updated(self, ledger: Ledger) -> None:
        """The next round's table becomes the table."""
        if self._due.any():
            return
        for part, table in zip(self._parts, self._next, strict=True):
            part.replace_table(table)
        self._board.add_counts(self._next_counts - ledger.counts)
        self._next_counts.zero_()
        self._seen[0] += 1

    def _look(self) -> None:
        """Read how far the round is. If it is another one than before, this rank's rows have moved up."""
        self._rounds.pull(self._seen, 0)
        self._rounds.flush()
        self._told.copy_(self._seen)
        if self._seen[0] != self._round:
            for part, table in zip(self._parts, self._next, strict=True):
                assert part.table is not None
                part.table.row, table.row = table.row, part.table.row
            self._round.copy_(self._seen[:1])

    def _tell(self) -> None:
        """Write what has changed since :meth:`_look`."""
        torch.sub(self._seen, self._told, out=self._told)
        self._rounds.push(self._told, 0)
        self._rounds.flush()

    def _tensors(self) -> list[Tensor]:
        tables = [tensor for table in self._next for tensor in (table.sum.shard, table.row)]
        return [*super()._tensors(), *tables, self._rounds.local, self._round]
