"""A machine on which layers take what a test says, by a clock of its own."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from litgpt.config import Config

from mdi.checkpoint.config import config_to_dict
from mdi.cluster import node_meter, stage_times
from mdi.control.measurement import StageRequest
from mdi.liveness import no_tick
from mdi.model.span import Span
from mdi.segments import Segment
from support.models import BASE

MESSAGE_S, ROW_S, POSITION_S, LOGITS_S = 1e-3, 2e-4, 1e-6, 3e-3


class Machine:
    """A machine that takes what it is told to take."""

    def __init__(self, slowness: float = 1.0, on_pass: Callable[[], None] = no_tick) -> None:
        self.now_s, self.slowness, self.on_pass = 0.0, slowness, on_pass
        self.n_passes = self.n_heads = 0
        self.stages = weakref.WeakSet[Engine]()  # those that somebody holds, and that have layers

    def clock(self) -> float:
        self.now_s += 1e-9  # so that a loop which waits for time to pass ends
        return self.now_s

    def make_engine(self, config: Config, span: Span, weights: Mapping[str, torch.Tensor], placement: Any) -> "Engine":
        return Engine(self, span)

    def make_head(self, config: Config, weights: Mapping[str, torch.Tensor], placement: Any) -> "Head":
        return Head(self, config.padded_vocab_size)


class Engine:
    weights_bytes = mapped_bytes = cache_bytes = 0
    numerics = "none"

    def __init__(self, machine: Machine, span: Span) -> None:
        self.machine, self.span = machine, span
        self.filled: set[int] = set()
        if len(span):
            machine.stages.add(self)

    def allocate(self, n_slots: int, context: int) -> None:
        self.filled.clear()

    def fork(self, source: int, target: int, n: int) -> None:
        self.filled.add(target)

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        self.machine.n_passes += 1
        self.machine.on_pass()
        assert not len(self.span) or {segment.slot for segment in segments} <= self.filled
        positions = sum(segment.stop for segment in segments)
        layer_s = ROW_S * len(x) + POSITION_S * positions
        self.machine.now_s += self.machine.slowness * (MESSAGE_S + len(self.span) * layer_s)
        return x


class Head:
    weights_bytes = mapped_bytes = 0

    def __init__(self, machine: Machine, n_tokens: int) -> None:
        self.machine, self.n_tokens = machine, n_tokens

    def embed(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        assert max(ids) < self.n_tokens
        return torch.zeros(len(ids), BASE["n_embd"])

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        self.machine.n_heads += 1
        self.machine.now_s += LOGITS_S * len(x) * self.n_tokens / BASE["padded_vocab_size"]
        return torch.zeros(len(x), self.n_tokens)


def measure_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nodes be timed on `machine`, each thing once."""
    monkeypatch.setattr(node_meter, "make_span_engine", machine.make_engine)
    monkeypatch.setattr(node_meter, "make_head", machine.make_head)
    monkeypatch.setattr(stage_times, "TIMING_S", 0.0)


def stage_request(**fields: Any) -> StageRequest:
    """For layers that such a machine can be timed with."""
    return StageRequest(**{
        "config": config_to_dict(Config(**BASE)), "stored_dtype": "float32", "stored": "none", "dtype": "float32",
        "quantize": None, "kv_dtype": None, "has_head": False, "nodes_on_host": 2, **fields,
    })  # fmt: skip
