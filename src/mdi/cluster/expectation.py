"""What was measured of a network -> what the ring that runs should generate, and how long each node should compute."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from mdi.cluster.forecast import Costs
from mdi.cluster.plan import Plan
from mdi.cluster.planner import NodeCosts, predict, stage_s
from mdi.cluster.ring_costs import layer_curve
from mdi.ids import NodeId

CONTEXT_STEP = 128  # positions; what lies between is taken for the next multiple


class RingExpectation:
    """Of one plan, whose nodes have all been measured. Sequences have the lengths that they have, not the plan's."""

    def __init__(self, costs: Costs, plan: Plan) -> None:
        self._costs, self._order = costs.in_ring(plan.members), plan.members
        self._layers = [len(span) for span in plan.spans]
        self._nodes_at = cache(self._nodes_with)
        self._tokens_s, self._compute_s = cache(self._predicted), cache(self._computed)

    def tokens_s(self, n_samples: int, context: int) -> float:
        """Of `n_samples` together, which hold `context` positions each."""
        return self._tokens_s(n_samples, _step_of(context))

    def compute_s(self, rows: int, kept: int, context: int) -> Mapping[NodeId, float]:
        """For how long each node computes a message of so many rows, of which the starter needs `kept` back."""
        return self._compute_s(rows, kept, _step_of(context))

    # ---- by steps of the context

    def _predicted(self, n_samples: int, context: int) -> float:
        work = replace(self._costs.job.workload, n_samples=n_samples)
        return predict(self._nodes_at(context), self._costs.links, work, self._order, self._layers).tokens_s

    def _computed(self, rows: int, kept: int, context: int) -> Mapping[NodeId, float]:
        nodes, times = self._nodes_at(context), self._costs.times.nodes
        found = {
            node: stage_s(nodes[node], n_layers, rows, is_starter=False) - times[node].frame_s
            for node, n_layers in zip(self._order, self._layers, strict=True)
        }
        starter = self._order[0]
        return found | {starter: found[starter] + (nodes[starter].head.at(kept) if kept else 0.0)}

    def _nodes_with(self, context: int) -> list[NodeCosts]:
        costs = self._costs
        return [
            replace(node, layer=layer_curve(times, context, config.share))
            for node, times, config in zip(costs.nodes, costs.times.nodes, costs.network.nodes, strict=True)
        ]


def _step_of(context: int) -> int:
    return -(-context // CONTEXT_STEP) * CONTEXT_STEP
