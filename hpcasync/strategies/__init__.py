"""The table of strategies: what ``--strategy NAME k=v ...`` may name. A named algorithm is one line here."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hpcasync.compression import Compression, parse_compression
from hpcasync.errors import UsageError
from hpcasync.replica import Replica
from hpcasync.strategies.as_ready import AsReady
from hpcasync.strategies.basgd import Basgd
from hpcasync.strategies.dana import Dana
from hpcasync.strategies.downpour import Downpour
from hpcasync.strategies.eager import Eager
from hpcasync.strategies.easgd import Eamsgd, Easgd
from hpcasync.strategies.gossip import OverlapSgp, Sgp
from hpcasync.strategies.gossip_groups import Wagma
from hpcasync.strategies.gossip_layers import LayUp
from hpcasync.strategies.gossip_pairs import AdPsgd
from hpcasync.strategies.gossip_rounds import DPsgd
from hpcasync.strategies.hogwild import Hogwild
from hpcasync.strategies.hogwild_nodes import HogwildNodes
from hpcasync.strategies.in_backward import InBackward
from hpcasync.strategies.local import DiLoCo, Local, StreamingDiLoCo
from hpcasync.strategies.local_async import DelayedNesterov, DynamicLocal
from hpcasync.strategies.local_nodes import Halos
from hpcasync.strategies.neuron import Neuron
from hpcasync.strategies.ringleader import Ringleader
from hpcasync.strategies.robust import Robust
from hpcasync.strategies.server import Server
from hpcasync.strategies.stale import Stale
from hpcasync.strategies.strategy import Strategy
from hpcasync.strategies.sync import Sync
from hpcasync.world import World

__all__ = ["STRATEGIES", "Choice", "Entry", "Strategy", "parse_strategy"]


@dataclass(frozen=True)
class Entry:
    """A named algorithm: a strategy, with some of its hyperparameters filled in, and one line about it."""

    cls: type[Strategy]
    summary: str
    preset: Mapping[str, Any] = field(default_factory=dict)

    def hyperparameters(self) -> dict[str, Any]:
        """{name: default} of what may be given as k=v, from the constructor's signature and the preset."""
        parameters = list(inspect.signature(self.cls).parameters.values())[3:]
        return {p.name: self.preset.get(p.name, p.default) for p in parameters}


STRATEGIES: dict[str, Entry] = {
    "sync": Entry(Sync, "every step waits for every rank"),
    "robust": Entry(Robust, "sync with a rule that stands faulty ranks in place of the mean"),
    "adasum": Entry(Robust, "sync between the sum and the mean, by the angles of the gradients", {"rule": "adasum"}),
    "basgd": Entry(Basgd, "parameter server that applies a robust rule to buckets of gradients"),
    "stale": Entry(Stale, "pipelined allreduce: the gradients of the last `bound` steps are in flight"),
    "eager": Entry(Eager, "partial allreduce: the mean of whoever is ready; nobody waits, up to `bound` rounds"),
    "solo": Entry(Eager, "eager whose rounds start as soon as any one rank is ready", {"quorum": "solo"}),
    "as_ready": Entry(AsReady, "sync whose gradients are reduced inside backward(), bucket by bucket"),
    "in_backward": Entry(InBackward, "sync that updates inside backward() and keeps one bucket of gradient"),
    "hogwild": Entry(Hogwild, "one memory per node, updated by all its ranks without locks"),
    "hogwild_nodes": Entry(HogwildNodes, "hogwild inside a node, pipelined sums of the nodes' changes between them"),
    "downpour": Entry(Downpour, "parameters sharded over the ranks' windows, pushed to and pulled from"),
    "bsp": Entry(Downpour, "downpour in lockstep: bulk synchronous", {"bound": 0}),
    "ssp": Entry(Downpour, "downpour whose slowest rank is at most `bound` steps behind", {"bound": 4}),
    "server": Entry(Server, "central parameters, a policy about staleness, an optimizer of the shards"),
    "downpour_adagrad": Entry(Server, "server with one Adagrad for all ranks' gradients", {"owner": "adagrad"}),
    "backup": Entry(Server, "the mean of the first n - 1 gradients; the last is dropped", {"policy": "backup:1"}),
    "ringmaster": Entry(Server, "gradients as old as n updates are dropped", {"policy": "ringmaster"}),
    "rennala": Entry(Server, "the mean of the first n gradients at the parameters of now", {"policy": "rennala"}),
    "malenia": Entry(Server, "rennala in which every rank counts the same", {"policy": "malenia"}),
    "ringleader": Entry(Ringleader, "the mean over a table of every rank's last gradients, updated by each in turn"),
    "kardam": Entry(Server, "gradients that turn too much for the way gone are dropped", {"policy": "lipschitz"}),
    "dc_asgd": Entry(Server, "gradients corrected for their delay, by a Taylor term", {"policy": "dc:0.04"}),
    "dc_asgd_a": Entry(Server, "dc_asgd in proportion to the gradient's usual size", {"policy": "dc_adaptive:2"}),
    "dana": Entry(Dana, "a momentum per rank; gradients where the momenta of all will lead"),
    "gap_aware": Entry(Server, "gradients divided by how far the parameters have gone since", {"policy": "gap"}),
    "staleness_aware": Entry(Server, "gradients divided by their delay", {"policy": "inverse"}),
    "delay_adaptive": Entry(Server, "gradients older than n updates count less", {"policy": "delay_adaptive"}),
    "easgd": Entry(Easgd, "a spring ties every rank's replica to a center that all share"),
    "eamsgd": Entry(Eamsgd, "easgd with Nesterov's momentum in every rank"),
    "sgp": Entry(Sgp, "push-sum gossip: shares of the parameters go to one peer of the exponential graph"),
    "overlap_sgp": Entry(OverlapSgp, "sgp whose shares travel while the next step computes"),
    "layup": Entry(LayUp, "push-sum gossip layer by layer, inside backward()"),
    "adpsgd": Entry(AdPsgd, "odd ranks average with even ones, in pairs and one-sidedly"),
    "dpsgd": Entry(DPsgd, "every step averages with the neighbours on a ring, and waits for them"),
    "wagma": Entry(Wagma, "averaging in rotating groups, which waits for nobody up to `bound` steps"),
    "local_sgd": Entry(Local, "replicas train alone and are averaged every `period` steps"),
    "slowmo": Entry(Local, "local_sgd with momentum outside", {"period": 12, "outer_momentum": 0.7}),
    "cocod": Entry(Local, "local_sgd whose average travels during the next period", {"delay": 10}),
    "diloco": Entry(DiLoCo, "long periods inside, Nesterov's momentum outside"),
    "streaming_diloco": Entry(StreamingDiLoCo, "diloco, one fragment after the other, while training goes on"),
    "delayed_nesterov": Entry(DelayedNesterov, "local_sgd that waits for nobody, with momentum once in N updates"),
    "dylu": Entry(DynamicLocal, "delayed_nesterov with fewer steps between two exchanges on slower ranks"),
    "halos": Entry(Halos, "asynchronous local SGD inside the nodes, delayed_nesterov between them"),
    "neuron": Entry(
        Neuron, "hogwild neuron by neuron through windows: each is updated as soon as its gradient is ready"
    ),
    "neuron_cyclic": Entry(Neuron, "one neuron per step, in turn; only its gradient is computed", {"select": "cyclic"}),
    "asyscd": Entry(
        Neuron, "one neuron per step, drawn at random; ranks may meet on one", {"select": "random", "lease": "off"}
    ),
    "gauss_southwell": Entry(
        Neuron,
        "one neuron per step, the one with the largest gradient that nobody has a lease on",
        {"select": "greedy"},
    ),
}


@dataclass(frozen=True)
class Choice:
    """A strategy's name and all of its hyperparameters, as given or by default."""

    name: str
    options: Mapping[str, Any]
    compression: Compression | None = None

    def build(self, replica: Replica, world: World, optimizer: torch.optim.Optimizer) -> Strategy:
        """Collective. The strategy, ready for its first step."""
        strategy = STRATEGIES[self.name].cls(replica, world, optimizer, **self.options)
        if self.compression is not None:
            strategy.compress(self.compression)
        return strategy


def parse_strategy(words: Sequence[str], compress: str | None = None) -> Choice:
    """``["downpour", "pull=4"]`` as a Choice, whose messages travel compressed like "topk:0.01", say.

    Raises:
        UsageError: an unknown strategy or hyperparameter, or a value of the wrong type; the message lists the known. A
            compression that is not known, or that the strategy does not take.
    """
    if not words or words[0] not in STRATEGIES:
        given = repr(words[0]) if words else "nothing"
        raise UsageError(f"unknown strategy {given}; the known ones are {', '.join(STRATEGIES)}")
    name = words[0]
    options = STRATEGIES[name].hyperparameters()
    types = typing.get_type_hints(STRATEGIES[name].cls.__init__)
    for word in words[1:]:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"strategy {name}: {word!r} is not of the form key=value")
        if key not in options:
            known = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
            raise UsageError(f"strategy {name} has no option {key!r}; its options and defaults: {known}")
        options[key] = _value(name, key, text, types[key])
    return Choice(name, options, _compression(name, compress) if compress is not None else None)


def _compression(name: str, text: str) -> Compression:
    compression = parse_compression(text)
    taken = STRATEGIES[name].cls.compresses
    if not taken:
        able = ", ".join(name for name, entry in STRATEGIES.items() if entry.cls.compresses)
        raise UsageError(f"--compress {text}: strategy {name} sends nothing compressed; these can: {able}")
    if compression.name not in taken:
        raise UsageError(f"--compress {text}: strategy {name} takes {', '.join(taken)}")
    return compression


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    """``text`` as the type that the constructor's signature names: int, float, str or a Literal of strings."""
    choices = typing.get_args(kind)
    if choices:
        if text not in choices:
            raise UsageError(f"strategy {name}: {key}={text} is not one of {', '.join(choices)}")
        return text
    try:
        value = kind(text)
    except ValueError:
        article = "an integer" if kind is int else "a number"
        raise UsageError(f"strategy {name}: {key}={text} is not {article}") from None
    return int(value) if kind is float and value == value and abs(value) < 2**53 and value == int(value) else value
