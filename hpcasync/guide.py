"""``hpcasync strategies``: what there is, one of them in full, and which algorithm fits which disease."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from hpcasync.arguments import parse
from hpcasync.staleness import parse_policy
from hpcasync.strategies import ADDING, FAMILIES, STRATEGIES, Entry, parse_strategy

TABLE_COLUMNS = 130  # from which on the strategies are a table


@dataclass(frozen=True)
class Advice:
    """What to take for one disease, in words that stand in the README too."""

    disease: str
    take: tuple[str, ...]
    why: str


ADVICE = (
    Advice(
        "nothing: equal ranks, a fast network",
        ("sync", "as_ready"),
        "`sync` takes 19 s and those that wait for nobody 17 or 18 (`hogwild`, `server`, `downpour`), at an eighth of "
        "the step size: nothing to win but noise. `as_ready` hides the exchange behind backward().",
    ),
    Advice(
        "one rank, or a few, slow for good",
        ("backup", "server", "hogwild"),
        "`backup` leaves the slow rank out: 25 s where `sync` takes 190, without staleness. What waits for nobody is "
        "hardly faster (`server` 18, `hogwild` 20, `ringmaster` 21, `downpour` 22), for a rank ten times slower has "
        "little to add. Asynchronous it must be where you cannot say how many are slow, or where their data may not be "
        "missed (see unlike data).",
    ),
    Advice(
        "random jitter",
        ("downpour", "hogwild", "adpsgd"),
        "It is another rank's turn to be slow in every step, so backup workers drop good work (`backup` and `sync` "
        "49 s). Updates that wait for nobody use it all: `downpour`, `hogwild` and `server` 14, `ringmaster` and "
        "`adpsgd` 18, `sgp` 28.",
    ),
    Advice(
        "a slow network",
        ("overlap_sgp", "adpsgd", "cocod", "local_sgd"),
        "Send while computing, to few, or seldom: `overlap_sgp` 22 s, `adpsgd` 27, `cocod` 28, `local_sgd` 35, "
        "where `sync` takes 53 and an exchange as long as 1.8 steps. `--compress` makes messages smaller. Not the "
        "policies of `server`: they decide one contribution after the other, so each waits for the messages of "
        "all (270 s or more).",
    ),
    Advice(
        "unlike data on the ranks",
        ("sync", "malenia", "ringleader", "ssp"),
        "All must count the same, the slow ones too: with one rank ten times slower these four take 20 s. Whatever "
        "hears fast ranks more often or leaves slow ones out comes to rest elsewhere, and so do gossip and local steps "
        "with a constant step size: not there after 100 s with any.",
    ),
    Advice(
        "faulty ranks",
        ("robust", "basgd", "kardam"),
        "Of 8 ranks 2 collude at a thousand times the scale: the mean is off by more than 400, median, trimmed "
        "mean and Krum by less than 0.5, at honest noise of 0.1. `robust` costs sound ranks little (23 s for 19), "
        "but a median is no mean where data are unlike. `basgd` waits for nobody, `kardam` finds gradients gone "
        "wild. A rank that dies is no fault of this kind: every strategy goes on without it.",
    ),
)

STEP_SIZES = (
    "Most strategies average what n ranks bring, as `sync` does, and take `sync`'s step size. In these it adds up, and "
    f"an n-th makes as long a step: {', '.join(f'`{name}`' for name in ADDING)}. Staleness asks for less: with a mean "
    "staleness s, down to `sync`'s step size / (1 + s). So does `eager` (and `solo`) beside a slow rank, where a round "
    "averages few gradients, and late ones: begin with a quarter. Compare two strategies only with the best step size "
    "of each: `hpcasync sweep` begins its search with this rule."
)


@dataclass(kw_only=True)
class Options:
    """Which strategies are shown."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME ...")] = ()
    """Show these in full (default: the table of all, and the guide)."""


def strategies(words: Sequence[str]) -> int:
    """Print the table and the guide, or some strategies.

    Raises:
        UsageError: an unknown strategy.
    """
    purpose = "What every strategy does and takes, and which one fits which disease."
    example = "hpcasync strategies\nhpcasync strategies ringmaster"
    options = parse(Options, words, prog="hpcasync strategies", description=f"{purpose}\n\n{example}")
    console = Console()
    for name in options.names:
        parse_strategy([name])
    if options.names:
        print("\n\n\n".join(in_full(name) for name in options.names))
        return 0
    if console.width >= TABLE_COLUMNS:
        console.print(table())
    else:
        _print_list(console)
    for advice in ADVICE:
        console.print(f"[bold]{advice.disease}[/bold]: {', '.join(advice.take)}", highlight=False)
        console.print(advice.why.replace("`", "") + "\n", highlight=False)
    console.print("[bold]step sizes[/bold]", highlight=False)
    console.print(STEP_SIZES.replace("`", ""), highlight=False)
    return 0


def table() -> Table:
    """A line per strategy, under what its family exchanges."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("strategy", "what it is", "options and defaults", "papers"):
        shown.add_column(title, overflow="fold")
    for family in FAMILIES:
        shown.add_section()
        shown.add_row(f"[bold]{family.name}[/bold]", f"[dim]exchanged: {family.exchanges}[/dim]")
        for name, entry in family.entries.items():
            shown.add_row(name, entry.summary, _options(entry), papers(entry))
    return shown


def _print_list(console: Console) -> None:
    """What the table has, where it does not fit: a paragraph per strategy."""
    for family in FAMILIES:
        console.print(f"[bold]{family.name}[/bold]  [dim]exchanged: {family.exchanges}[/dim]\n", highlight=False)
        for name, entry in family.entries.items():
            console.print(f"  [bold]{name}[/bold]", highlight=False)
            for text in filter(None, (entry.summary, _options(entry), papers(entry))):
                console.print(Padding(Text(text), (0, 0, 0, 6), expand=False))
        console.print()


def in_full(name: str) -> str:
    """A strategy's equations, options, papers and codecs, as its docstring has them."""
    entry = STRATEGIES[name]
    family = next(family for family in FAMILIES if name in family.entries)
    parts = [f"{name}: {entry.summary}", inspect.getdoc(entry.cls) or ""]
    if "policy" in entry.preset:
        policy = type(parse_policy(str(entry.preset["policy"]), 2))
        parts.append(f"Its policy, {entry.preset['policy']}: {inspect.getdoc(policy)}")
    codecs = ", ".join(entry.cls.compresses) or "nothing"
    step_size = "an n-th of that of sync, for n ranks" if name in ADDING else "that of sync"
    parts.append(
        f"exchanges: {family.exchanges}\noptions:   {_options(entry) or 'none'}\n--compress: {codecs}\n"
        f"step size: {step_size}, less under staleness\n"
        f"papers:    {papers(entry)}"
    )
    return "\n\n".join(parts)


def papers(entry: Entry) -> str:
    """Its papers, with "arXiv" before such numbers."""
    return re.sub(r"\b(\d{4}\.\d{4,5})\b", r"arXiv \1", entry.papers)


def markdown() -> str:
    """The guide as a Markdown table: the README's."""
    lines = ["| disease | take | why |", "| --- | --- | --- |"]
    lines += [f"| {a.disease} | {', '.join(f'`{name}`' for name in a.take)} | {a.why} |" for a in ADVICE]
    return "\n".join(lines) + "\n"


def _options(entry: Entry) -> str:
    return " ".join(f"{name}={value}" for name, value in entry.hyperparameters().items())
