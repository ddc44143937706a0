"""The table of strategies. A named algorithm is one line here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Entry:
    """A named algorithm: a strategy, one line about it, its papers, and some of the hyperparameters filled in.

    A paper is "authors year, place", where the place is a number of arXiv's if it has one.
    """

    cls: type[Strategy]
    summary: str
    papers: str
    preset: Mapping[str, Any] = field(default_factory=dict)

    def hyperparameters(self) -> dict[str, Any]:
        """{name: default} of what may be given as k=v, from the constructor's signature and the preset."""
        parameters = list(inspect.signature(self.cls).parameters.values())[3:]
        return {p.name: self.preset.get(p.name, p.default) for p in parameters}


@dataclass(frozen=True)
class Family:
    """Algorithms that exchange the same thing."""

    name: str
    exchanges: str
    entries: Mapping[str, Entry]


FAMILIES = (
    Family(
        "allreduce",
        "gradients, summed over all ranks",
        {
            "sync": Entry(Sync, "every step waits for every rank", "Chen et al. 2016, 1604.00981"),
            "as_ready": Entry(
                AsReady,
                "sync whose gradients are reduced inside backward(), bucket by bucket",
                "Li et al. 2020, 2006.15704",
            ),
            "in_backward": Entry(
                InBackward,
                "sync that updates inside backward() and keeps one bucket of gradient",
                "Lv et al. 2023, 2306.09782",
            ),
            "stale": Entry(
                Stale,
                "pipelined allreduce: the gradients of the last `bound` steps are in flight",
                "Li et al. 2018, 1811.03619",
            ),
            "eager": Entry(
                Eager,
                "partial allreduce: the mean of whoever is ready; nobody waits, up to `bound` rounds",
                "Li et al. 2020, 1908.04207",
            ),
            "solo": Entry(
                Eager,
                "eager whose rounds start as soon as any one rank is ready",
                "Li et al. 2020, 1908.04207",
                {"quorum": "solo"},
            ),
            "robust": Entry(
                Robust,
                "sync with a rule that stands faulty ranks in place of the mean",
                "Yin et al. 2018, 1803.01498; Blanchard et al. 2017, 1703.02757",
            ),
            "adasum": Entry(
                Robust,
                "sync between the sum and the mean, by the angles of the gradients",
                "Maleki et al. 2021, 2006.02924",
                {"rule": "adasum"},
            ),
        },
    ),
    Family(
        "shared memory",
        "nothing: the ranks of a node work on one memory",
        {
            "hogwild": Entry(
                Hogwild, "one memory per node, updated by all its ranks without locks", "Niu et al. 2011, 1106.5730"
            ),
            "hogwild_nodes": Entry(
                HogwildNodes,
                "hogwild inside a node, pipelined sums of the nodes' changes between them",
                "Niu et al. 2011, 1106.5730; Li et al. 2018, 1811.03619",
            ),
        },
    ),
    Family(
        "central parameters",
        "gradients or updates in one direction, parameters in the other; each rank owns a shard",
        {
            "downpour": Entry(
                Downpour,
                "parameters sharded over the ranks' windows, pushed to and pulled from",
                "Dean et al. 2012, NeurIPS",
            ),
            "bsp": Entry(Downpour, "downpour in lockstep: bulk synchronous", "Valiant 1990, ACM", {"bound": 0}),
            "ssp": Entry(
                Downpour,
                "downpour whose slowest rank is at most `bound` steps behind",
                "Ho et al. 2013, NeurIPS",
                {"bound": 4},
            ),
            "server": Entry(
                Server,
                "central parameters, a policy about staleness, an optimizer of the shards",
                "Dean et al. 2012, NeurIPS",
            ),
            "downpour_adagrad": Entry(
                Server,
                "server with one Adagrad for all ranks' gradients",
                "Dean et al. 2012, NeurIPS; Duchi et al. 2011, JMLR",
                {"owner": "adagrad"},
            ),
            "backup": Entry(
                Server,
                "the mean of the first n - 1 gradients; the last is dropped",
                "Chen et al. 2016, 1604.00981",
                {"policy": "backup:1"},
            ),
            "ringmaster": Entry(
                Server,
                "gradients as old as R updates are dropped: n by default, ceil(sigma²/epsilon) in the paper",
                "Maranjyan et al. 2025, 2501.16168",
                {"policy": "ringmaster"},
            ),
            "rennala": Entry(
                Server,
                "the mean of the first n gradients at the parameters of now",
                "Tyurin and Richtárik 2023, 2305.12387",
                {"policy": "rennala"},
            ),
            "malenia": Entry(
                Server,
                "rennala in which every rank counts the same",
                "Tyurin and Richtárik 2023, 2305.12387",
                {"policy": "malenia"},
            ),
            "ringleader": Entry(
                Ringleader,
                "the mean over a table of every rank's last gradients, updated by each in turn",
                "Maranjyan and Richtárik 2025, 2509.22860",
            ),
            "kardam": Entry(
                Server,
                "gradients that turn too much for the way gone are dropped",
                "Damaskinos et al. 2018, 1802.07928",
                {"policy": "lipschitz"},
            ),
            "dc_asgd": Entry(
                Server,
                "gradients corrected for their delay, by a Taylor term; say policy=dc:B for batches of B",
                "Zheng et al. 2017, 1609.08326",
                {"policy": "dc:0.04"},
            ),
            "dc_asgd_a": Entry(
                Server,
                "dc_asgd in proportion to the gradient's usual size",
                "Zheng et al. 2017, 1609.08326",
                {"policy": "dc_adaptive:2"},
            ),
            "dana": Entry(
                Dana,
                "a momentum per rank; gradients where the momenta of all will lead",
                "Hakimi et al. 2019, 1907.11612",
            ),
            "gap_aware": Entry(
                Server,
                "gradients divided by how far the parameters have gone since",
                "Barkai et al. 2020, 1909.10802",
                {"policy": "gap"},
            ),
            "staleness_aware": Entry(
                Server, "gradients divided by their delay", "Zhang et al. 2016, 1511.05950", {"policy": "inverse"}
            ),
            "delay_adaptive": Entry(
                Server,
                "gradients older than n updates count less",
                "Koloskova et al. 2022, 2206.08307; Mishchenko et al. 2022, 2206.07638",
                {"policy": "delay_adaptive"},
            ),
            "basgd": Entry(
                Basgd,
                "parameter server that applies a robust rule to buckets of gradients",
                "Yang and Li 2021, 2003.00937",
            ),
        },
    ),
    Family(
        "replicas",
        "parameters, with a center or with peers",
        {
            "easgd": Entry(
                Easgd, "a spring ties every rank's replica to a center that all share", "Zhang et al. 2015, 1412.6651"
            ),
            "eamsgd": Entry(Eamsgd, "easgd with Nesterov's momentum in every rank", "Zhang et al. 2015, 1412.6651"),
            "sgp": Entry(
                Sgp,
                "push-sum gossip: shares of the parameters go to one peer of the exponential graph",
                "Assran et al. 2019, 1811.10792",
            ),
            "overlap_sgp": Entry(
                OverlapSgp, "sgp whose shares travel while the next step computes", "Assran et al. 2019, 1811.10792"
            ),
            "layup": Entry(LayUp, "push-sum gossip layer by layer, inside backward()", "Fokam et al. 2024, 2410.05985"),
            "adpsgd": Entry(
                AdPsgd, "odd ranks average with even ones, in pairs and one-sidedly", "Lian et al. 2018, 1710.06952"
            ),
            "dpsgd": Entry(
                DPsgd,
                "every step averages with the neighbours on a ring, and waits for them",
                "Lian et al. 2017, 1705.09056",
            ),
            "wagma": Entry(
                Wagma,
                "averaging in rotating groups, which waits for nobody up to `bound` steps",
                "Li et al. 2020, 2005.00124",
            ),
        },
    ),
    Family(
        "local steps",
        "what many steps of a rank add up to",
        {
            "local_sgd": Entry(
                Local, "replicas train alone and are averaged every `period` steps", "Stich 2019, 1805.09767"
            ),
            "slowmo": Entry(
                Local,
                "local_sgd with momentum outside",
                "Wang et al. 2020, 1910.00643",
                {"period": 12, "outer_momentum": 0.7},
            ),
            "cocod": Entry(
                Local,
                "local_sgd whose average travels during the next period",
                "Shen et al. 2019, 1906.12043",
                {"delay": 10},
            ),
            "diloco": Entry(
                DiLoCo, "long periods inside, Nesterov's momentum outside", "Douillard et al. 2023, 2311.08105"
            ),
            "streaming_diloco": Entry(
                StreamingDiLoCo,
                "diloco, one fragment after the other, while training goes on",
                "Douillard et al. 2025, 2501.18512",
            ),
            "delayed_nesterov": Entry(
                DelayedNesterov,
                "local_sgd that waits for nobody, with momentum once in N updates",
                "Liu et al. 2024, 2401.09135",
            ),
            "dylu": Entry(
                DynamicLocal,
                "delayed_nesterov with fewer steps between two exchanges on slower ranks",
                "Liu et al. 2024, 2401.09135",
            ),
            "halos": Entry(
                Halos,
                "asynchronous local SGD inside the nodes, delayed_nesterov between them",
                "Kim et al. 2025, 2506.04531",
            ),
        },
    ),
    Family(
        "neurons",
        "rows of weights with their biases, one block at a time",
        {
            "neuron": Entry(
                Neuron,
                "hogwild neuron by neuron through windows: each is updated as soon as its gradient is ready",
                "Bertsekas and Tsitsiklis 1989, ch. 6",
            ),
            "neuron_cyclic": Entry(
                Neuron,
                "one neuron per step, in turn; only its gradient is computed",
                "Bertsekas and Tsitsiklis 1989, ch. 6",
                {"select": "cyclic"},
            ),
            "asyscd": Entry(
                Neuron,
                "one neuron per step, drawn at random; ranks may meet on one",
                "Liu and Wright 2015, 1403.3862",
                {"select": "random", "lease": "off"},
            ),
            "gauss_southwell": Entry(
                Neuron,
                "one neuron per step, the one with the largest gradient that nobody has a lease on",
                "Nutini et al. 2015, 1506.00552; You et al. 2016, NeurIPS",
                {"select": "greedy"},
            ),
        },
    ),
)

STRATEGIES: dict[str, Entry] = {name: entry for family in FAMILIES for name, entry in family.entries.items()}

# Where sync averages what n ranks bring, here it adds up: a step size about n times smaller is as long a step.
ADDING = (
    *("hogwild", "hogwild_nodes", "downpour", "bsp", "ssp", "server", "downpour_adagrad", "ringmaster"),
    *("kardam", "dc_asgd", "dc_asgd_a", "dana", "gap_aware", "delay_adaptive"),
    *("neuron", "neuron_cyclic", "asyscd", "gauss_southwell"),
)
