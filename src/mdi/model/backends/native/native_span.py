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
from mdi.model.backends.native.memory import POSITIONS, default_kv_dtype, filled_up
from mdi.model.backends.native.packing import layout_of
from mdi.model.build import Placement
from mdi.model.devices import memory_errors
from mdi.model.span import Span
from mdi.model.tensors import mapped_empty
from mdi.model.weights import Weights
from mdi.segments import Segment, check_segments, rows_of

_CACHE_TYPES = {"float32": native.FLOAT32, "float16": native.FLOAT16, "int8": native.INT8}


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
        usual = default_kv_dtype(placement.dtype, is_quantized=is_quantized)
        self._kv_dtype, self._has_usual_kv = placement.kv_dtype or usual, placement.kv_dtype in (None, usual)
        self._slots: list[torch.Tensor] = []  # keys and values of each layer
        self._tables: list[torch.Tensor] = []  # cosines and sines of each kind of layer
        structures = (native.Block * len(span))(*(block.structure for block in self._blocks))
        shape = shape_of(config, _CACHE_TYPES[self._kv_dtype])
        self._span = library.mdi_span_new(ctypes.byref(shape), structures, len(span))
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
    def cache_bytes(self) -> int:
        """What the slots take."""
        return sum(layer.nbytes for layer in self._slots)

    @property
    def numerics(self) -> str:
        """The name of the kernels' arithmetic, on whatever CPU: `native-1`, or `native-1-kv-int8`."""
        return native.NUMERICS if self._has_usual_kv else f"{native.NUMERICS}-kv-{self._kv_dtype}"

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` slots of `context` positions each. Earlier slots are forgotten; 0 slots free their memory."""
        self._n_slots = self._context = 0
        self._slots.clear()
        padded_context = filled_up(context, POSITIONS)
        self._slots = [
            mapped_empty(torch.Size([n_slots * n_bytes]), torch.uint8)
            for n_bytes in self._layer_bytes(padded_context)
            for _ in self._blocks
        ]
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

    def _layer_bytes(self, context: int) -> tuple[int, int]:
        """What the kernels write of one slot in a layer, where it has `context` positions: keys and values."""
        n_heads, head_size = self.config.n_query_groups, self.config.head_size
        keys, values = ctypes.c_int64(), ctypes.c_int64()  # of 16 positions of one head
        cache_type = _CACHE_TYPES[self._kv_dtype]
        self._library.mdi_cache_bytes(cache_type, head_size, ctypes.byref(keys), ctypes.byref(values))
        n_blocks = n_heads * context // POSITIONS
        return n_blocks * keys.value, n_blocks * values.value

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
