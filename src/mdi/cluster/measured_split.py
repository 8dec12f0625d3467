"""The split of a ring by what was measured of its nodes: chosen by it, or held against it."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence

from mdi.checkpoint.folder import ModelFolder
from mdi.cluster.expectation import RingExpectation
from mdi.cluster.forecast import Costs, Forecast, advise, behind_plan, forecast_of
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.plan import Plan, PlanWith
from mdi.config.network import NetworkConfig, node_name
from mdi.control.client import ControlClient
from mdi.control.measurement import StageTimes
from mdi.errors import ConfigError
from mdi.formats import Mode
from mdi.ids import NodeId
from mdi.strings import count, format_rate

log = logging.getLogger(__name__)


class MeasuredSplit:
    """What is known of one network and of those who join it. What is known is replaced, so any thread may ask."""

    def __init__(self, network: MeasuredNetwork) -> None:
        self.network = network
        self.costs: Costs | None = None  # None: nothing was measured, as far as is known
        self.is_chosen = False  # whether the first ring was planned as measured
        self.modes: Mapping[NodeId, Mode] = {}  # that nodes are to hold their weights in, where a plan has chosen them

    def choose(self, measure: Callable[[], Costs], *, use_all: bool = False) -> Forecast:
        """Measure, and choose who takes part, in which order and with how many layers. Tells the user.

        Args:
            use_all: all nodes take part.
        """
        self.costs = costs = measure().with_best_modes()
        found = forecast_of(costs, costs.plan(use_all=use_all))
        self.is_chosen = True
        for sentence in advise(costs, found):
            log.warning("%s", sentence)
        if self.network.allow_quantize is not None:
            self.modes = {NodeId(node): costs.times.nodes[node].mode for node in found.ring.order}
        quantized = [f", {mode} on {node_name(node)}" for node, mode in self.modes.items() if mode != "none"]
        log.warning("planned as measured: %s%s; %s", found.ring.split, "".join(quantized), found.rates)
        return found

    def compare(self, plan: Plan) -> None:
        """Say where the split in use is far behind the best one, by what was measured of these nodes before."""
        self.costs = costs = self.network.known()
        if costs is None or len(costs.nodes) == 1:
            return
        layers = [len(span) for span in plan.spans]
        with contextlib.suppress(ConfigError):  # of nodes that had less memory then
            if line := behind_plan(costs, plan.members, layers, "this split"):
                log.warning("%s", line)

    def time_newcomer(self, network: NetworkConfig, client: ControlClient) -> StageTimes | None:
        """What the last node of `network` takes, which asks for a place; None where the others were not measured.

        Takes seconds. Any thread may call it. Raises `ControlError`.
        """
        return None if self.costs is None else self.network.measure_newcomer(network, client)

    def add(self, network: NetworkConfig, times: StageTimes) -> None:
        """The last node of `network` takes that. To be called for each node that is added, in their order."""
        if self.costs is not None:
            self.costs = self.costs.with_node(network, times)

    def plan(self, model: ModelFolder, members: Sequence[NodeId], plan_with: PlanWith) -> Plan:
        """Of a ring of all of these nodes, ordered and split as they were measured.

        Where that is unknown, or there are chunks for so many nodes and the first ring was not planned as measured
        either, it is as --split auto has it. Raises as `plan_with` does.
        """
        may_split = model.has_weights and (self.is_chosen or model.ring_manifest(len(members)) is None)
        if may_split and (costs := self._costs_of(members)) is not None:
            try:
                ring = costs.ring_of(members)
                return plan_with(tuple(map(NodeId, ring.order)), ring.split)
            except ConfigError as exc:  # there is less memory than there was
                log.info("not split as measured: %s", exc)
        return plan_with(members, "auto")

    def expectation(self, plan: Plan) -> RingExpectation | None:
        """What a ring should do; None where one of its nodes was not measured."""
        costs = self._costs_of(plan.members)
        return None if costs is None else RingExpectation(costs, plan)

    def rate(self, plan: Plan) -> str:
        """`; predicted 41 tokens/s with 4 samples`, where all nodes of a ring were measured."""
        if (costs := self._costs_of(plan.members)) is None:
            return ""
        n_samples = min(costs.job.n_samples, plan.n_slots)
        rate = costs.tokens_s(plan.members, [len(span) for span in plan.spans], n_samples)
        return f"; predicted {format_rate(rate)} tokens/s with {count(n_samples, 'sample')}"

    def _costs_of(self, members: Sequence[NodeId]) -> Costs | None:
        return self.costs if self.costs is not None and self.costs.has(members) else None
