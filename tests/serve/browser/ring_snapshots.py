"""Snapshots of a ring of three nodes, as `GET /ring` gives them."""

from typing import Any

GB = 10**9
SHARES = ("compute", "transfer", "idle")


def node(place: int, **changes: Any) -> dict[str, Any]:
    """One of three nodes at work."""
    values = {
        "name": "starter" if place == 0 else f"secondary {place - 1}",
        "rank": place,
        "role": "starter" if place == 0 else "secondary",
        "address": f"192.168.1.{20 + place}:8088",
        "state": "running",
        "missing_s": None,
        "layers": [10 * place, 10 * (place + 1)],
        "device": "cpu",
        "dtype": "float32",
        "weights": "none",
        "memory_bytes": GB,
        "peak_memory_bytes": 2 * GB,
        "free_memory_bytes": 3 * GB,
        "weights_bytes": GB // 5,
        "rows_per_s": 41.2,
        "compute": 0.6,
        "transfer": 0.1,
        "idle": 0.3,
        "queue": 0,
        "slowness": 1.4 if place == 2 else None,
    }
    return values | changes


def sample(**changes: Any) -> dict[str, Any]:
    """A request whose answer is under way."""
    values = {
        "id": "chatcmpl-1",
        "index": 0,
        "slot": 0,
        "phase": "generating",
        "n_prompt": 20,
        "n_cached": 12,
        "n_generated": 25,
        "max_tokens": 100,
        "seconds": 1.2,
    }
    return values | changes


def snapshot(**changes: Any) -> dict[str, Any]:
    """A ring of three that serves one request."""
    values = {
        "model": "tiny",
        "version": "0.2.0",
        "state": "ready",
        "state_s": 12.3,
        "epoch": 1,
        "recoveries": 0,
        "n_layers": 30,
        "slots": {"total": 16, "used": 3},
        "queue": {"waiting": 0, "limit": 64},
        "tokens_per_s": 41.2,
        "predicted_tokens_per_s": 43.9,
        "reached_tokens_per_s": 41.0,
        "messages": [{"rows": 3, "prompt_rows": 0, "age_s": 0.01, "expected_s": 0.04}],
        "nodes": [node(place) for place in range(3)],
        "samples": [sample()],
    }
    return values | changes


def without_secondary_0(missing_s: float) -> dict[str, Any]:
    """The same, while the ring waits for a node."""
    unknown = ("memory_bytes", "peak_memory_bytes", "free_memory_bytes", "queue", "rows_per_s", "slowness", *SHARES)
    lost = node(1, state="missing", missing_s=missing_s, **dict.fromkeys(unknown))
    return snapshot(state="recovering", state_s=missing_s, nodes=[node(0), lost, node(2)], tokens_per_s=0.0)
