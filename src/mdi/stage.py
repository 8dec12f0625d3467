"""One node's span of blocks, its KV slots, and on the starter the embedding and the head.

The blocks are litgpt's own, built with their global layer index; only their attention is replaced.
Shapes: N rows in the message, C = n_embd.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from litgpt.config import Config
from litgpt.model import GPT, Block, do_softcapping
from torch import nn

from mdi.assemble import Assembler, Placement
from mdi.attention import SegmentAttention, make_plan
from mdi.errors import ConfigError, one_line
from mdi.kernels import Kernels
from mdi.messages import Segment, SlotLedger
from mdi.partition import Span
from mdi.quant import held_bytes

log = logging.getLogger(__name__)

LEAST_GAIN = 1.05  # of compiling, to be kept


class Stage:
    """The blocks of one span and their KV slots. Called only from the compute thread."""

    def __init__(
        self,
        config: Config,
        span: Span,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
    ) -> None:
        """
        Args:
            weights: the span's tensors under their global names (`transformer.h.<layer>. ...`); others are ignored.

        Raises:
            CheckpointError: a tensor is missing, or of another shape than `config` says.
            ConfigError: out of memory, or the device has no kernel for quantized weights.
        """
        self.config, self.span = config, span
        self.device, self.dtype = placement.device, placement.dtype
        self.weights_bytes = held_bytes(stage_shapes(config, span), placement.dtype, placement.quantize)
        self._kernels = placement.kernels
        self._ledger = SlotLedger(0, 0)
        self._blocks = {layer: _load_block(config, layer, weights, placement) for layer in range(*span)}

    def begin(self, n_slots: int, context: int) -> None:
        """Begin a session with empty slots. Where the last one had as many of the same size, their memory is kept."""
        if self.slots == (n_slots, context):
            self.reset()
        else:
            self.allocate(n_slots, context)

    def allocate(self, n_slots: int, context: int) -> None:
        """Make `n_slots` empty slots of `context` positions each. Earlier slots are forgotten."""
        self._ledger = SlotLedger(n_slots, context)
        with memory_errors(f"{n_slots} slots of {context} positions"):
            for block in self._blocks.values():
                block.attn.allocate(n_slots, context, self.device, self.dtype)
            self._cos, self._sin = rotary_tables(self.config, context, self.device)  # (context, D[, 2])

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return self._ledger.n_slots, self._ledger.context

    def reset(self) -> None:
        """Empty all slots, keeping their memory."""
        self._ledger = SlotLedger(self._ledger.n_slots, self._ledger.context)

    def free(self) -> None:
        """Give the memory of all slots back; the weights stay."""
        self._ledger = SlotLedger(0, 0)
        for block in self._blocks.values():
            block.attn.allocate(0, 0, self.device, self.dtype)

    @torch.inference_mode()
    def forward(self, x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
        """Hidden states (N, C) of a message's rows -> (N, C) after this span; fills the slots.

        Raises `RemoteProtocolError` for illegal segments, before anything is computed.
        """
        self._ledger.extend(segments)
        with memory_errors(f"a message of {len(x)} rows"):
            plan = make_plan(segments, self.config, self.device, self.dtype)
            cos, sin = self._cos[plan.positions][:, None], self._sin[plan.positions][:, None]  # (N, 1, D[, 2])
            x = x.to(self.device, self.dtype)
            for layer, block in self._blocks.items():
                if (indices := self.config.rope_indices) is not None:
                    x = block.forward(x, cos[..., indices[layer]], sin[..., indices[layer]], plan)
                else:
                    x = block.forward(x, cos, sin, plan)
        return x

    def release(self, slot: int) -> None:
        """Empty a slot."""
        self._ledger.release(slot)

    @torch.inference_mode()
    def fork(self, source: int, target: int, n: int) -> None:
        """Let slot `target` begin with the first `n` positions of slot `source`."""
        self._ledger.fork(source, target, n)
        for block in self._blocks.values():
            block.attn.fork(source, target, n)

    def compile(self) -> None:
        """Compile the small operations of each block, if that pays here.

        Both ways are timed on messages of one row. Where torch cannot compile (no C++ compiler, say) or is
        less than 5% faster for it, the stage stays as it was; what was found is logged. Slots are forgotten.
        """
        self.allocate(1, 2)
        plain_s = self._step_s()
        self._kernels.compile()
        try:
            for n_rows in (1, 2):  # torch sees 1 as special
                self._step_s(n_rows)
            gain = plain_s / self._step_s()
            verdict = f"makes a step {gain:.2f} times as fast"
        except Exception as exc:  # noqa: BLE001  whatever the compiler raises, the stage works without it
            gain, verdict = 0.0, f"is not possible here ({one_line(exc)})"
        if gain < LEAST_GAIN:
            verdict += ": left as they were"
            self._kernels.restore()
        log.warning("compiling the small operations %s", verdict)

    def _step_s(self, n_rows: int = 1) -> float:
        """Seconds that a message takes: the best of five."""
        return min(self._timed(n_rows) for _ in range(5))

    @torch.inference_mode()
    def _timed(self, n_rows: int) -> float:
        start_s: float = time.perf_counter()
        self.forward(torch.zeros(n_rows, self.config.n_embd), [Segment(0, 0, n_rows, n_rows)])
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start_s


class Ends:
    """What the starter has besides its stage: the embedding before the first block, the head after the last."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, torch.Tensor],
        placement: Placement,
    ) -> None:
        """Raises `CheckpointError` where a tensor is missing or of another shape, `ConfigError` as `Stage` does.

        Embeddings are looked up where they lie in the file, row by row, so a head that is tied to them is held once.
        """
        self.config, self.device, self.dtype = config, placement.device, placement.dtype
        self.weights_bytes = held_bytes(ends_shapes(config), placement.dtype, placement.quantize)
        own = {name.removeprefix("transformer."): weights[name] for name in weights if ".h." not in name}
        empty: Any = _build_ends(config)
        with memory_errors("the weights of the head"):
            assembler = Assembler(own, "the embedding and the head", placement)
            self._embedding = assembler.find("wte.weight", empty["wte"].weight.shape)
            self._norm = assembler.assemble(empty["ln_f"], "ln_f.")
            self._head = assembler.assemble(empty["lm_head"], "lm_head.")

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Token ids (N) -> hidden states (N, C)."""
        x = self._embedding[torch.tensor(ids)].to(self.device, self.dtype)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary), float32 on the CPU."""
        with memory_errors(f"the logits of {len(x)} rows"):
            x = self._head(self._norm(x.to(self.device, self.dtype)))
            if (cap := self.config.final_logit_softcapping) is not None:
                x = do_softcapping(x, cap)
            return x.to("cpu", torch.float32)


def kept_rows(x: torch.Tensor, segments: Sequence[Segment]) -> torch.Tensor:
    """Of the rows (N, C) of a message, the last `keep` of each segment: what the last node returns."""
    if all(segment.keep == segment.n for segment in segments):
        return x
    kept: list[int] = []
    stop = 0
    for segment in segments:
        stop += segment.n
        kept += range(stop - segment.keep, stop)
    return x[kept]


@contextlib.contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a `ConfigError` that says what did not fit."""
    try:
        yield
    except (RuntimeError, OSError) as exc:  # torch.OutOfMemoryError on GPUs; plain ones from the CPU's allocators
        if "memory" not in str(exc):
            raise
        raise ConfigError(
            f"out of memory for {what}: use fewer samples, a shorter --sequence-length, a smaller --dtype or more nodes"
        ) from exc


def layer_weights(config: Config) -> list[int]:
    """The number of parameters of each layer."""
    layers = _block_shapes(config, range(config.n_layer))
    return [sum(shape.numel() for shape in shapes.values()) for shapes in layers]


def head_weight(config: Config) -> int:
    """The number of parameters of the head; the embedding is looked up, not multiplied."""
    return int(config.padded_vocab_size * config.n_embd)


def stage_shapes(config: Config, span: Span) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor that a stage over `span` holds."""
    layers = range(*span)
    return {
        f"transformer.h.{layer}.{name}": shape
        for layer, shapes in zip(layers, _block_shapes(config, layers), strict=True)
        for name, shape in shapes.items()
    }


def ends_shapes(config: Config) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor of the embedding and the head."""
    state = _build_ends(config).state_dict()
    return {name if name.startswith("lm_head.") else f"transformer.{name}": state[name].shape for name in state}


def _block_shapes(config: Config, layers: Sequence[int]) -> list[dict[str, torch.Size]]:
    """Name -> shape of every tensor of each layer. There are two kinds of layers at most, and each is built once."""
    kinds: dict[bool, dict[str, torch.Size]] = {}
    for layer in layers:
        if (dense := _is_dense(config, layer)) not in kinds:
            state = _build_block(config, layer).state_dict()
            kinds[dense] = {name: tensor.shape for name, tensor in state.items()}
    return [kinds[_is_dense(config, layer)] for layer in layers]


def _is_dense(config: Config, layer: int) -> bool:
    """Whether a model that is a mixture of experts from some layer on has not come to it yet."""
    return layer < (config.first_k_dense_replace or 0)


def _build_ends(config: Config) -> nn.ModuleDict:
    """litgpt's embedding, final norm and head, without memory behind their parameters."""
    with torch.device("meta"):
        return nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "ln_f": config.norm_class(config.n_embd, eps=config.norm_eps),
                "lm_head": nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias),
            }
        )


def _build_block(config: Config, layer: int, kernels: Kernels | None = None) -> Block:
    """A litgpt block without memory behind its parameters."""
    with torch.device("meta"):
        block = Block(config, layer)
        block.attn = SegmentAttention(config, layer, kernels or Kernels())
    return block.requires_grad_(False)


def _load_block(config: Config, layer: int, weights: Mapping[str, torch.Tensor], placement: Placement) -> Block:
    prefix = f"transformer.h.{layer}."
    own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    with memory_errors(f"the weights of layer {layer}"):
        return Assembler(own, f"layer {layer}", placement).assemble(_build_block(config, layer, placement.kernels))


def rotary_tables(config: Config, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """litgpt's own tables of cosines and sines in float32, without a whole `GPT` to ask for them.

    The sines of the first half of the elements are negated, for elements that are swapped with their partners unsigned.
    """
    cos, sin = GPT.rope_cache(SimpleNamespace(config=config, max_seq_length=context), device)
    sin[:, : sin.size(1) - sin.size(1) // 2].neg_()
    return cos, sin
