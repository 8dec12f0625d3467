"""The interfaces between a node and the backend that computes its part."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from mdi.model.architecture import ModelConfig
from mdi.model.build import Placement
from mdi.model.span import Span
from mdi.model.weights import Weights
from mdi.segments import Segment


class SpanEngine(Protocol):
    """Computes the blocks of one span and owns their KV slots. The layout of the slots is its own.

    It checks nothing: `Stage` passes only segments that the slots have room for. `forward` raises `StorageError` where
    weights in a mapped file cannot be read any more.
    """

    span: Span

    @property
    def weights_bytes(self) -> int:
        """What the weights hold."""

    @property
    def mapped_bytes(self) -> int:
        """Of these, what lies in files that are mapped: the system can take that memory, and read them again."""

    @property
    def cache_bytes(self) -> int:
        """What the slots take, filled or not."""

    @property
    def numerics(self) -> str:
        """The name of its arithmetic: two engines with one name give the same numbers for the same weights."""

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` slots of `context` positions each. Earlier slots are forgotten; 0 slots free their memory."""

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, n_embd) of a message's N rows -> the same after the span; fills the slots."""

    def fork(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of slot `source` to slot `target`."""


class Head(Protocol):
    """What the starter has besides its stage: the embedding before the first block, the head after the last."""

    @property
    def weights_bytes(self) -> int:
        """What the weights hold."""

    @property
    def mapped_bytes(self) -> int:
        """Of these, what lies in files that are mapped: the system can take that memory, and read them again."""

    def embed(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Token ids (N), each at a position of its sequence -> hidden states (N, n_embd)."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, n_embd) after the last block -> logits (N, vocabulary), float32 on the CPU."""


SpanEngineFactory = Callable[[ModelConfig, Span, Weights, Placement], SpanEngine]
HeadFactory = Callable[[ModelConfig, Weights, Placement], Head]
