"""The split of a ring by what was measured of its nodes: chosen by it, or held against it."""

import contextlib
import logging
from collections.abc import Callable

from mdi.cluster.expectation import RingExpectation
from mdi.cluster.forecast import Costs, Forecast, advise, behind_plan, forecast_of
from mdi.cluster.measured_network import MeasuredNetwork
from mdi.cluster.plan import Plan
from mdi.errors import ConfigError

log = logging.getLogger(__name__)


class MeasuredSplit:
    """What is known of one network. Called from the main thread."""

    def __init__(self, network: MeasuredNetwork) -> None:
        self.network = network
        self.costs: Costs | None = None  # None: nothing was measured, as far as is known

    def choose(self, measure: Callable[[], Costs]) -> Forecast:
        """Measure, and choose who takes part, in which order and with how many layers. Tells the user."""
        self.costs = costs = measure()
        found = forecast_of(costs, costs.plan())
        for sentence in advise(costs, found):
            log.warning("%s", sentence)
        log.warning("planned as measured: %s; %s", found.split, found.rates)
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
