"""What was measured of the nodes decides how their layers are split, in the first ring and in later ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from mdi.cluster.forecast import Costs
from mdi.cluster.measured_split import MeasuredSplit
from mdi.cluster.plan import Plan
from mdi.config.network import NetworkConfig
from mdi.control.measurement import StageTimes
from mdi.errors import ConfigError
from mdi.ids import NodeId
from mdi.model.span import spans_of
from support.measured import JOB, network_with, times_of


@dataclass
class Folder:
    """A model folder, as far as a split depends on it."""

    has_weights: bool = True
    sizes: tuple[int, ...] = ()  # of the rings that there are chunks for

    def ring_manifest(self, n_nodes: int) -> object:
        return n_nodes if n_nodes in self.sizes else None


@dataclass
class Planner:
    """Remembers what it was asked for; whatever is not "auto" may be more than memory holds."""

    is_full: bool = False
    asked: list[tuple[tuple[int, ...], str]] = field(default_factory=list)

    def __call__(self, order: Sequence[NodeId], split: str) -> Plan:
        self.asked.append((tuple(order), split))
        if split == "auto":
            layers = [12 // len(order)] * len(order)
        elif self.is_full:
            raise ConfigError("not enough memory")
        else:
            layers = [int(part) for part in split.split(",")]
        return Plan(tuple(order), tuple(spans_of(layers)), n_slots=2, context=512)


def measured(*slowness: float) -> MeasuredSplit:
    split = MeasuredSplit(SimpleNamespace(allow_quantize=None))  # type: ignore[arg-type]
    split.choose(lambda: Costs(*network_with(*slowness), JOB), use_all=True)
    return split


def split_of(known: MeasuredSplit, *members: int, folder: Folder | None = None, is_full: bool = False) -> str:
    planner = Planner(is_full)
    known.plan(folder or Folder(), [NodeId(member) for member in members], planner)  # type: ignore[arg-type]
    order, split = planner.asked[-1]
    return f"{split} on {','.join(map(str, order))}"


def test_nodes_that_are_left_are_split_as_they_were_measured() -> None:
    known = measured(1, 1, 2)
    assert split_of(known, 0, 2) == "8,4 on 0,2"
    assert split_of(known, 0, 1) == "6,6 on 0,1"


def test_a_node_that_joins_gets_the_layers_that_it_can_compute() -> None:
    known = measured(1, 1)
    known.add(network_with(1, 1, 4)[0], times_of(4))
    planner = Planner()
    plan = known.plan(Folder(), [NodeId(0), NodeId(1), NodeId(2)], planner)  # type: ignore[arg-type]
    layers = dict(zip(plan.members, map(len, plan.spans), strict=True))
    assert layers[NodeId(2)] == 1 and sum(layers.values()) == 12
    assert known.expectation(plan) is not None
    assert known.rate(plan).startswith("; predicted ") and known.rate(plan).endswith(" tokens/s with 2 samples")


def test_where_nothing_was_measured_the_sizes_of_the_layers_decide() -> None:
    nothing_known = MeasuredSplit(SimpleNamespace(allow_quantize=None))  # type: ignore[arg-type]
    nothing_known.add(network_with(1, 1)[0], times_of(1))
    assert nothing_known.costs is None
    assert split_of(nothing_known, 0, 1) == "auto on 0,1"
    known = measured(1, 2)
    assert split_of(known, 0, 1, 2) == "auto on 0,1,2"
    assert known.rate(Planner()([NodeId(0), NodeId(1), NodeId(2)], "auto")) == ""


def test_without_the_whole_model_or_without_room_the_sizes_of_the_layers_decide() -> None:
    known = measured(1, 2)
    assert split_of(known, 0, 1, folder=Folder(has_weights=False)) == "auto on 0,1"
    assert split_of(known, 0, 1, is_full=True) == "auto on 0,1"


def test_chunks_keep_their_split_unless_the_ring_was_planned_as_measured() -> None:
    known = measured(1, 2)
    assert split_of(known, 0, 1, folder=Folder(sizes=(2,))) == "8,4 on 0,1"
    known.is_chosen = False  # it was known from before
    assert split_of(known, 0, 1, folder=Folder(sizes=(2,))) == "auto on 0,1"
    assert split_of(known, 0, 1, folder=Folder(sizes=(3,))) == "8,4 on 0,1"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_node_is_timed_only_beside_others_that_were(is_known: bool) -> None:
    class Network(SimpleNamespace):
        def measure_newcomer(self, network: NetworkConfig, client: object) -> StageTimes:
            return times_of(3)

    known = MeasuredSplit(Network())  # type: ignore[arg-type]
    if is_known:
        known.costs = Costs(*network_with(1, 1), JOB)
    times = known.time_newcomer(network_with(1, 1, 1)[0], None)  # type: ignore[arg-type]
    assert times == (times_of(3) if is_known else None)
