"""The only owner of a stage, for both roles: loads weights, begins sessions, computes, gives memory back."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from mdi.errors import LocalProtocolError, StorageError
from mdi.formats import BackendChoice, KvDtype, Mode
from mdi.liveness import no_tick
from mdi.machine import return_freed_memory
from mdi.model.architecture import ModelConfig
from mdi.model.build import Placement
from mdi.model.devices import free_memory_bytes, limit_onednn_caches
from mdi.model.packed import IN_MEMORY, CannotKeepError, PackedFiles
from mdi.model.quant import mode_of, resolve
from mdi.model.span import Span
from mdi.model.span_engine import Head, HeadFactory, SpanEngineFactory
from mdi.model.stage import Stage
from mdi.model.tensors import TORCH_DTYPES
from mdi.model.threads import SlowSteps
from mdi.model.weights import Weights
from mdi.segments import Fork, Segment

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageSpec:
    """What a stage is loaded for."""

    config: ModelConfig
    span: Span
    has_head: bool  # the starter's: the embedding and the head besides the blocks
    weights_id: object  # equal for equal weights: a digest, or else what names the run
    dtype: str  # to compute in
    quantize: Mode | None  # for weights that are not quantized already; None: none
    rows: int = field(compare=False)  # that a message usually carries; decides between layouts
    kv_dtype: KvDtype | None = None  # of keys and values; None: as exact as the weights


def _packing_key(spec: StageSpec, weights: Weights, mode: Mode) -> str:
    """Equal for stages whose weights are packed alike, by one backend."""
    stored: dict[int, int] = {}  # which names stand for one tensor decides about what is packed
    tensors = [
        (name, str(tensor.dtype), list(tensor.shape), stored.setdefault(id(tensor), len(stored)))
        for name, tensor in sorted(weights.meta.items())
    ]
    return json.dumps([weights.identity, repr(spec.config), spec.dtype, mode, tensors])


def _head_key(spec: StageSpec) -> tuple[object, ...]:
    """What two stages share that can have one head."""
    return spec.config, spec.weights_id, spec.dtype, spec.quantize


class StageRunner:
    """One node's stage. Called only from the compute thread."""

    def __init__(
        self,
        device: torch.device,
        make_engine: SpanEngineFactory,
        make_head: HeadFactory,
        *,
        backend: BackendChoice = "auto",
        compile_ops: bool = False,
        tick: Callable[[], None] = no_tick,
        packed_files: PackedFiles = IN_MEMORY,
    ) -> None:
        """
        Args:
            tick: called again and again while weights are loaded.
            packed_files: where weights are kept in the layout of a backend.
        """
        limit_onednn_caches()
        self.device = device
        self._make_engine, self._make_head = make_engine, make_head
        self._backend, self._compile_ops, self._tick = backend, compile_ops, tick
        self._packed_files = packed_files
        self._is_told = False  # why packed weights are not kept
        self._spec: StageSpec | None = None
        self._mode: Mode = "none"
        self._stage: Stage | None = None
        self._head: Head | None = None
        self._slow_steps = SlowSteps()

    def holds(self, spec: StageSpec) -> bool:
        """Whether the stage of `spec` is loaded. If not, the loaded one is given up: the new one needs its memory."""
        if self._stage is not None and self._spec == spec:
            return True
        if self._spec is None or _head_key(self._spec) != _head_key(spec):
            self._head = None
        self._stage, self._spec = None, None
        return False

    def load(self, spec: StageSpec, weights: Weights, source: str) -> None:
        """Load the stage of `spec`, unless it is loaded already.

        Args:
            source: what the weights are called in an error.

        Raises as the engine, `resolve` and `Weights.verify` do; then nothing is loaded.
        """
        if self.holds(spec):
            return
        mode = resolve(mode_of(weights.meta), spec.quantize, source)
        loaded = None
        if weights.identity:
            try:
                loaded = self._loaded(spec, weights, mode, self._packed_files)
            except CannotKeepError as exc:
                self._tell(exc)
        if loaded is None:  # here, where the error is gone: it held what had been packed
            loaded = self._loaded(spec, weights, mode, IN_MEMORY)
        (self._head, self._stage), self._spec, self._mode = loaded, spec, mode
        return_freed_memory()  # of packing
        self._slow_steps = SlowSteps()

    def _loaded(self, spec: StageSpec, weights: Weights, mode: Mode, files: PackedFiles) -> tuple[Head | None, Stage]:
        """The head, if this node has one, and the stage."""
        with files.opened(_packing_key(spec, weights, mode), self._tick) as packed:
            placement = Placement(
                self.device,
                TORCH_DTYPES[spec.dtype],
                mode,
                spec.kv_dtype,
                spec.rows,
                self._compile_ops,
                self._backend,
                self._tick,
                packed,
            )
            head = self._head
            if spec.has_head and head is None:  # before the blocks: while it is packed, the head is held twice
                head = self._make_head(spec.config, weights, placement)
            stage = Stage(self._make_engine(spec.config, spec.span, weights, placement))
            if not packed.is_kept:
                weights.verify()  # before anything is computed with them, or kept
        return head, stage

    def _tell(self, problem: CannotKeepError) -> None:
        """Say once why weights are packed anew at each start."""
        if not self._is_told:
            log.warning("%s: weights are packed in memory, at each start anew", problem)
        self._is_told = True

    def begin(self, n_slots: int, context: int) -> None:
        """Begin a session with empty slots."""
        self._loaded_stage.begin(n_slots, context)

    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) -> (N, C) after this node's span; see `Stage.forward`."""
        began_s = time.monotonic()
        with self._giving_up_lost_weights():
            x = self._loaded_stage.forward(x, segments)
        if self.device.type == "cpu" and (news := self._slow_steps.add(len(x), time.monotonic() - began_s)):
            log.warning("%s", news)
        return x

    def fork(self, fork: Fork) -> None:
        """Copy the first positions of one slot to another."""
        self._loaded_stage.fork(fork.source, fork.target, fork.n)

    def embed(self, ids: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Token ids (N), each at a position of its sequence -> hidden states (N, C)."""
        with self._giving_up_lost_weights():
            return self._loaded_head.embed(ids, positions)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary), float32 on the CPU."""
        with self._giving_up_lost_weights():
            return self._loaded_head.logits(rows)

    @contextlib.contextmanager
    def _giving_up_lost_weights(self) -> Iterator[None]:
        """Where a mapped file cannot be read any more, the next session must load anew what is left of it."""
        try:
            yield
        except StorageError:
            self.unload()
            raise

    def free(self) -> None:
        """Give the memory of all slots back; the weights stay for the next session."""
        if self._stage is not None:
            self._stage.free()

    def unload(self) -> None:
        """Give everything back."""
        self._stage, self._head, self._spec = None, None, None

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return (0, 0) if self._stage is None else self._stage.slots

    def free_memory_bytes(self) -> int:
        """What a session may take: what is free, and what the weights that are loaded now would give back.

        What the system holds of mapped files counts as free already.
        """
        mapped_bytes = sum(part.mapped_bytes for part in (self._stage, self._head) if part is not None)
        return free_memory_bytes(self.device) + max(0, self.weights_bytes - mapped_bytes)

    @property
    def quantization(self) -> Mode | None:
        """How the loaded weights are held; None while there are none."""
        return None if self._stage is None else self._mode

    @property
    def numerics(self) -> str | None:
        """What decides about every bit of a result, such as `native-1:float32` or `torch-2.13:bfloat16, int8 weights`.

        Two nodes with the same one compute the same from the same rows. None while nothing is loaded.
        """
        if self._stage is None or self._spec is None:
            return None
        weights = "" if self._mode == "none" else f", {self._mode} weights"
        return f"{self._stage.numerics}:{self._spec.dtype}{weights}"

    @property
    def weights_bytes(self) -> int:
        """What the loaded weights hold."""
        return sum(part.weights_bytes for part in (self._stage, self._head) if part is not None)

    @property
    def cache_bytes(self) -> int:
        """What the slots take, filled or not."""
        return 0 if self._stage is None else self._stage.cache_bytes

    @property
    def _loaded_stage(self) -> Stage:
        if self._stage is None:
            raise LocalProtocolError("no stage is loaded")
        return self._stage

    @property
    def _loaded_head(self) -> Head:
        if self._head is None:
            raise LocalProtocolError("this node holds no head")
        return self._head
