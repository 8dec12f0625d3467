"""A plan for people, and for programs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mdi.cluster.forecast import PROMPT_TOKENS, Costs, Forecast, Part
from mdi.strings import count, format_bytes, table_lines

HEADING = ("node", "layers", "computes", "memory", "busy")
_BAR = 20  # characters of a node that is never idle


@dataclass(frozen=True)
class Report:
    """One plan, and what there is to say about it."""

    model: str
    costs: Costs
    found: Forecast
    advice: Sequence[str]
    what_if: str | None  # the machines that it is an estimate for; None: it was measured

    def text(self) -> str:
        """A table of the nodes, what the ring will do, and advice."""
        job = self.costs.job
        origin = "measured" if self.what_if is None else f"estimated from published figures, for {self.what_if}"
        samples = f"{count(job.n_samples, 'sample')} of {job.context} positions"
        lines = [f"{self.model}, {count(job.config.n_layer, 'layer')}, {samples}; {origin}", ""]
        lines += table_lines([HEADING, *map(self._row, self.found.parts)])
        first = f"first token of a {PROMPT_TOKENS}-token prompt after {self.found.first_token_s:.2g} s"
        lines += ["", f"{self.found.rates}; {first}", f"bottleneck: {self.found.ring.prediction.bottleneck}"]
        lines += [f"- {sentence}" for sentence in self.advice]
        return "\n".join(lines)

    def _row(self, part: Part) -> tuple[str, ...]:
        node = self.costs.times.nodes[part.node]
        free = "" if part.free_bytes is None else f" of {format_bytes(part.free_bytes)}"
        weights = "" if node.mode == "none" else f", {node.mode}"
        return (
            part.name,
            f"{part.span.start} to {part.span.stop - 1}",
            f"{node.dtype}{weights} on {node.device}",
            f"{format_bytes(part.memory_bytes)}{free}",
            f"{100 * part.busy:3.0f}% {'#' * round(_BAR * part.busy)}",
        )

    def json(self) -> str:
        """The same for programs: bytes, seconds, and ids of nodes, the starter's being 0."""
        job, found = self.costs.job, self.found
        value: dict[str, Any] = {
            "model": self.model,
            "n_layers": job.config.n_layer,
            "n_samples": job.n_samples,
            "context": job.context,
            "is_estimate": self.what_if is not None,
            "nodes": [self._node(part) for part in found.parts],
            "split": list(found.ring.layers),
            "tokens_s": {str(n): rate for n, rate in found.tokens_s.items()},
            "first_token_s": found.first_token_s,
            "bottleneck": found.ring.prediction.bottleneck,
            "advice": list(self.advice),
            "links": self._links(),
        }
        return json.dumps(value, indent=1)

    def _node(self, part: Part) -> dict[str, Any]:
        node = self.costs.times.nodes[part.node]
        return {
            "id": part.node,
            "name": part.name,
            "layers": list(part.span),
            "memory_bytes": part.memory_bytes,
            "free_bytes": node.free_memory_bytes,
            "memory_limit_bytes": node.memory_limit_bytes,
            "busy": part.busy,
            "device": node.device,
            "dtype": node.dtype,
            "quantization": node.mode,
            "disk_read_bytes_s": node.disk_read_bytes_s,
            "disk_write_bytes_s": node.disk_write_bytes_s,
        }

    def _links(self) -> list[dict[str, Any]]:
        return [
            {"from": source, "to": target, "latency_s": link.latency_s, "bytes_s": link.bytes_s}
            for source, row in enumerate(self.costs.links)
            for target, link in enumerate(row)
            if source != target
        ]
