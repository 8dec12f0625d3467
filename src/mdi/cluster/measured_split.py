"""The split of a ring by what was measured of its nodes: chosen by it, or held against it."""

import contextlib
import logging
from collections.abc import Callable, Mapping

from mdi.cluster.expectation import RingExpectation
from mdi.cluster.forecast import Costs, Forecast, advise, behind_plan, forecast_of
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.plan import Plan
from mdi.config.network import node_name
from mdi.errors import ConfigError
from mdi.formats import Mode
from mdi.ids import NodeId

log = logging.getLogger(__name__)


class MeasuredSplit:
    """What is known of one network. Called from the main thread."""

    def __init__(self, network: MeasuredNetwork) -> None:
        self.network = network
        self.costs: Costs | None = None  # None: nothing was measured, as far as is known
        self.modes: Mapping[NodeId, Mode] = {}  # that nodes are to hold their weights in, where a plan has chosen them

    def choose(self, measure: Callable[[], Costs], *, use_all: bool = False) -> Forecast:
        """Measure, and choose who takes part, in which order and with how many layers. Tells the user.

        Args:
            use_all: all nodes take part.
        """
        self.costs = costs = measure().with_best_modes()
        found = forecast_of(costs, costs.plan(use_all=use_all))
        for sentence in advise(costs, found):
            log.warning("%s", sentence)
        if self.network.allow_quantize is not None:
            self.modes = {NodeId(node): costs.times.nodes[node].mode for node in found.ring.order}
        quantized = [f", {mode} on {node_name(node)}" for node, mode in self.modes.items() if mode != "none"]
        log.warning("planned as measured: %s%s; %s", found.split, "".join(quantized), found.rates)
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

    def expectation(self, plan: Plan) -> RingExpectation | None:
        """What a ring should do; None where one of its nodes was not measured."""
        costs = self.costs
        return RingExpectation(costs, plan) if costs is not None and max(plan.members) < len(costs.nodes) else None
