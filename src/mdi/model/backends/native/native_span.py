"""The native backend: a message's rows through a whole span in one call of C++.

Shapes: N rows in the message, C = n_embd, D head size.
"""

import ctypes
import weakref
from collections.abc import Mapping, Sequence

import torch

from mdi.errors import LocalProtocolError
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.backends.native import library as native
from mdi.model.backends.native.blocks import PackedBlock, shape_of, unsupported
from mdi.model.backends.native.mapping import FileMapper
from mdi.model.backends.native.memory import POSITIONS, cache_bytes, cache_item_bytes, filled_up
from mdi.model.backends.native.packing import layout_of
from mdi.model.build import Placement
from mdi.model.devices import memory_errors
from mdi.model.span import Span
from mdi.model.tensors import mapped_empty
from mdi.model.weights import Weights
from mdi.segments import Segment, check_segments, rows_of


class NativeSpan:
    """A `SpanEngine` of kernels for this CPU."""

    def __init__(
        self,
        config: ModelConfig,
        span: Span,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """
        Args:
            library: the compiled kernels; None: those for this CPU.

        Raises:
            CheckpointError: a tensor is missing, or of another shape than `config` says.
            ConfigError: out of memory.
        """
        self.config, self.span, self._dtype = config, span, placement.dtype
        self._library = library = library or native.load_library()
        self._kept = placement.packed.part("blocks", layout_of(library), FileMapper(library))
        self._blocks = []
        for layer in range(*span):
            with memory_errors(f"the weights of layer {layer}"):
                self._blocks.append(PackedBlock(library, config, layer, Weights.of(weights), placement, self._kept))
        self._n_slots = self._context = 0
        is_quantized = any(block.is_quantized for block in self._blocks)
        self._item_bytes = cache_item_bytes(placement.dtype, is_quantized=is_quantized)
        self._slots: list[torch.Tensor] = []  # keys and values of each layer
        self._tables: list[torch.Tensor] = []  # cosines and sines of each kind of layer
        structures = (native.Block * len(span))(*(block.structure for block in self._blocks))
        self._span = library.mdi_span_new(ctypes.byref(shape_of(config, self._item_bytes == 2)), structures, len(span))
        weakref.finalize(self, library.mdi_span_delete, self._span)

    @staticmethod
    def supports(config: ModelConfig, placement: Placement) -> str | None:
        """Why the model cannot be computed there; None if it can. The kernels are compiled where they are not yet."""
        if reason := unsupported(config, placement):
            return reason
        try:
            native.load_library()
        except native.UnavailableError as exc:
            return str(exc)
        return None

    @property
    def weights_bytes(self) -> int:
        """What the weights hold."""
        return sum(block.n_bytes for block in self._blocks)

    @property
    def mapped_bytes(self) -> int:
        """Of these, what lies in a file that is mapped."""
        return self._kept.mapped_bytes

    @property
    def numerics(self) -> str:
        """The name of the kernels' arithmetic, on whatever CPU."""
        return native.NUMERICS

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` slots of `context` positions each. Earlier slots are forgotten; 0 slots free their memory."""
        self._n_slots = self._context = 0
        self._slots.clear()
        self._slots = [
            mapped_empty(torch.Size([n_slots * n_bytes]), torch.uint8)
            for n_bytes in cache_bytes(self.config, context, self._item_bytes)
            for _ in self._blocks
        ]
        padded_context = filled_up(context, POSITIONS)
        self._tables = _rotary_tables(self.config, padded_context)
        n_layers = len(self._blocks)
        if self._library.mdi_span_set_slots(
            self._span,
            torch.get_num_threads(),
            padded_context,
            _pointers(self._slots[:n_layers]),
            _pointers(self._slots[n_layers:]),
            _pointers(self._tables[:2]),
            _pointers(self._tables[2:]),
        ):
            raise RuntimeError("out of memory for the slots")
        self._n_slots, self._context = n_slots, context

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) of a message's rows -> (N, C) after this span; fills the slots."""
        # The kernels read and write where they are told to, so all of it is checked here once more.
        check_segments(segments, self._n_slots, self._context)
        if x.shape != (rows_of(segments), self.config.n_embd):
            raise LocalProtocolError(f"rows of {tuple(x.shape)} for {rows_of(segments)} of {self.config.n_embd}")
        x = x.to("cpu", torch.float32).contiguous()
        y = torch.empty_like(x)
        places = (native.Segment * len(segments))(*(native.Segment(s.slot, s.start, s.n) for s in segments))
        if self._library.mdi_span_forward(self._span, x.data_ptr(), y.data_ptr(), places, len(segments)):
            raise RuntimeError("out of memory for a message")
        self._kept.check()
        return y.to(self._dtype)

    def fork(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of slot `source` to slot `target`."""
        check_segments([Segment(source, 0, n, 0), Segment(target, 0, n, 0)], self._n_slots, self._context)
        self._library.mdi_span_fork(self._span, source, target, n)


def _rotary_tables(config: ModelConfig, context: int) -> list[torch.Tensor]:
    """Two tables of cosines and two of sines (context, rotary elements): a model with one kind has it twice."""
    tables = architecture_of(config).rotary_tables(config, context, torch.device("cpu"))
    kinds = [table.unbind(-1) if table.dim() == 3 else (table, table) for table in tables]
    return [table.float().contiguous() for kind in kinds for table in kind]


def _pointers(tensors: Sequence[torch.Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
