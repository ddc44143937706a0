"""A table of every rank's last gradients, for ranks with different data: rounds in which each brings one update."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


class _Round:
    """How far the round is, as read from rank 0's window: [its number, due_r ..., next counts_r ...].

    Attributes:
        due: (n,) 1 for the ranks that have yet to bring an update in the second phase; zeros in the first.
        next_counts: (n,) the contributions that are in the next round's table.
    """

    def __init__(self, ranks: int) -> None:
        self.cells = torch.zeros(1 + 2 * ranks, dtype=torch.int64)
        self.number, self.due, self.next_counts = self.cells[:1], self.cells[1 : ranks + 1], self.cells[ranks + 1 :]


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
        self._next = [Table(world, part.pair.params, by_rank=True) for part in self._parts]
        self._round = torch.zeros(1, dtype=torch.int64)  # which this rank's rows belong to
        world.barrier()

    @staticmethod
    def _parse(text: str, ranks: int) -> Policy:
        return _Rows()

    def _use(self, ledger: Ledger) -> bool:
        me = self.world.rank
        with self._round_read() as now:
            second_phase = bool(now.due.any())
            if second_phase and not now.due[me]:
                self._collect(self._next, now.next_counts)
                return False
            self._collect([part.table for part in self._parts if part.table], ledger.counts)
            self._board.count()
            if not second_phase and self.policy.complete(ledger):
                now.due.copy_(ledger.active)
            if now.due[me]:
                now.due[me] = 0
                self._update_by_table(ledger)
                self._end_round_if_all_have_updated(now, ledger)
        return False

    def _leave(self) -> None:
        with self._board.attention(), self._round_read() as now:
            self._board.set_active(False)
            if now.due[self.world.rank]:
                now.due[self.world.rank] = 0
                self._end_round_if_all_have_updated(now, self._board.read())

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

    def _end_round_if_all_have_updated(self, now: _Round, ledger: Ledger) -> None:
        """The next round's table becomes the table."""
        if now.due.any():
            return
        for part, table in zip(self._parts, self._next, strict=True):
            part.replace_table(table)
        self._board.add_counts(now.next_counts - ledger.counts)
        now.next_counts.zero_()
        now.number += 1

    @contextmanager
    def _round_read(self) -> Iterator[_Round]:
        """The round, with the token; changes to it are written at the end. In a new round this rank's rows move up."""
        now = _Round(self.world.size)
        self._rounds.pull(now.cells, 0)
        self._rounds.flush()
        if int(now.number) != int(self._round):
            for part, table in zip(self._parts, self._next, strict=True):
                assert part.table is not None
                part.table.row, table.row = table.row, part.table.row
            self._round.copy_(now.number)
        before = now.cells.clone()
        yield now
        self._rounds.push(now.cells.sub_(before), 0)
        self._rounds.flush()

    def _tensors(self) -> list[Tensor]:
        tables = [tensor for table in self._next for tensor in (table.sum.shard, table.row)]
        return [*super()._tensors(), *tables, self._rounds.local, self._round]
