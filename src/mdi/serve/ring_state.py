"""`GET /ring`: what the page draws, as JSON. Units are seconds and bytes; no text of prompts or answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mdi import __version__
from mdi.cluster.ring_view import NodeView, RingView
from mdi.engine.sample import Sample
from mdi.engine.trips import Travelling

Phase = Literal["waiting", "prompt", "generating"]


@dataclass(frozen=True)
class OpenSample:
    """A sample that was taken and has not ended. The compute thread changes it meanwhile."""

    sample: Sample
    answer_id: str  # as its client knows it
    index: int  # among the answers of its request
    since_s: float  # by the monotonic clock

    def to_json(self, now_s: float) -> dict[str, Any]:
        sample, slot, n_generated = self.sample, self.sample.slot, len(self.sample.tokens)
        phase: Phase = "waiting" if slot is None else "generating" if n_generated else "prompt"
        return {
            "id": self.answer_id,
            "index": self.index,
            "slot": slot,
            "phase": phase,
            "n_prompt": len(sample.prompt),
            "n_cached": sample.n_cached,
            "n_generated": n_generated,
            "max_tokens": sample.params.max_tokens,
            "seconds": round(now_s - self.since_s, 3),
        }


def ring_json(view: RingView) -> dict[str, Any]:
    """What is known of the ring itself."""
    return {
        "version": __version__,
        "epoch": view.epoch,
        "n_layers": view.n_layers,
        "tokens_per_s": round(view.tokens_per_s, 2),
        "predicted_tokens_per_s": view.speed and round(view.speed.predicted, 2),
        "reached_tokens_per_s": view.speed and round(view.speed.reached, 2),
        "messages": [_message_json(message) for message in view.messages],
        "nodes": [_node_json(node) for node in view.nodes],
    }


def samples_json(samples: Sequence[OpenSample], n_slots: int, max_queue: int, now_s: float) -> dict[str, Any]:
    """What is generated, and what waits for a slot."""
    listed = [sample.to_json(now_s) for sample in samples]
    n_used = sum(sample["slot"] is not None for sample in listed)
    return {
        "slots": {"total": n_slots, "used": n_used},
        "queue": {"waiting": len(listed) - n_used, "limit": max_queue},
        "samples": listed,
    }


def _message_json(message: Travelling) -> dict[str, Any]:
    return {
        "rows": message.n_rows,
        "prompt_rows": message.n_prompt_rows,
        "age_s": round(message.age_s, 4),
        "expected_s": _rounded(message.expected_s, 4),
    }


def _node_json(node: NodeView) -> dict[str, Any]:
    """A node that does not answer keeps what does not change: the rest of what it said is not true any more."""
    status, now, rates = node.status, node.status if node.is_up else None, node.rates if node.is_up else None
    return {
        "name": node.name,
        "rank": node.rank,
        "role": "secondary" if node.rank != 0 else "starter",
        "address": node.address,
        "state": _state_of(node),
        "missing_s": _rounded(node.missing_s, 1),
        "layers": node.span and list(node.span),
        "device": status and status.device,
        "dtype": status and status.dtype,
        "weights": status and status.weights,
        "weights_bytes": status and status.weights_bytes,
        "memory_bytes": now and now.memory_bytes,
        "peak_memory_bytes": now and now.peak_memory_bytes,
        "free_memory_bytes": now and now.available_bytes,
        "queue": now and now.waiting,
        "rows_per_s": rates and round(rates.rows_per_s, 1),
        "compute": rates and round(rates.compute, 3),
        "transfer": rates and round(rates.transfer, 3),
        "idle": rates and round(rates.idle, 3),
        "slowness": _rounded(node.slowness, 2),
    }


def _state_of(node: NodeView) -> str:
    if node.missing_s is not None:
        return "missing"
    return "unknown" if node.status is None else node.status.state.value


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
