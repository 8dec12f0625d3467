"""One node's span of blocks, its KV slots, and on the starter the embedding and the head.

The blocks are litgpt's own, built with their global layer index; only their attention is replaced.
Shapes: N rows in the message, C = n_embd.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace

import torch
from litgpt.config import Config
from litgpt.model import GPT, Block, do_softcapping
from torch import nn

from mdi.attention import SegmentAttention, make_plan
from mdi.errors import CheckpointError, ConfigError, one_line
from mdi.messages import Segment, SlotLedger
from mdi.partition import Span
from mdi.tensors import page_out

log = logging.getLogger(__name__)


class Stage:
    """The blocks of one span and their KV slots. Called only from the compute thread."""

    def __init__(
        self,
        config: Config,
        span: Span,
        weights: Mapping[str, torch.Tensor],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """
        Args:
            weights: the span's tensors under their global names (`transformer.h.<layer>. ...`); others are ignored.

        Raises:
            CheckpointError: a tensor is missing, or of another shape than `config` says.
        """
        self.config, self.span = config, span
        self.device, self.dtype = torch.device(device), dtype
        self._ledger = SlotLedger(0, 0)
        self._blocks = {layer: _build_block(config, layer) for layer in range(*span)}
        for layer, block in self._blocks.items():
            _load(block, _under(f"transformer.h.{layer}.", weights), f"layer {layer}", self.device, dtype)

    def allocate(self, n_slots: int, context: int) -> None:
        """Begin a session: `n_slots` empty slots of `context` positions each. Earlier slots are forgotten."""
        self._ledger = SlotLedger(n_slots, context)
        with memory_errors(f"{n_slots} slots of {context} positions"):
            for block in self._blocks.values():
                block.attn.allocate(n_slots, context, self.device, self.dtype)
            self._cos, self._sin = rotary_tables(self.config, context, self.device)  # (context, rotary elements[, 2])

    @property
    def slots(self) -> tuple[int, int]:
        """The number of slots that have memory, and the positions of each."""
        return self._ledger.n_slots, self._ledger.context

    def reset(self) -> None:
        """Begin a session of the same numbers as the last one: all slots are empty, their memory is kept."""
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
            cos, sin = self._cos[plan.positions][None], self._sin[plan.positions][None]  # (1, N, rotary elements[, 2])
            x = x.to(self.device, self.dtype)[None]
            for layer, block in self._blocks.items():
                if (indices := self.config.rope_indices) is not None:
                    x = block(x, cos[..., indices[layer]], sin[..., indices[layer]], plan)
                else:
                    x = block(x, cos, sin, plan)
        return x[0]

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
        """Compile what has no data-dependent shape in each block, its norms and its MLP, if that pays here.

        Both ways are timed on one row. Where torch cannot compile (no C++ compiler, say) or is less than 5%
        faster for it, the stage stays as it was; what was found is logged.
        """
        from torch._inductor import config as inductor  # slow to import, and only needed here

        names = ("norm_1", "norm_2", "mlp")
        modules = [module for block in self._blocks.values() for name in names if (module := getattr(block, name))]
        plain_s = self._time(modules)
        inductor.compile_threads = 1  # no pool of processes that outlives the compilation
        for module in modules:
            module.compile(dynamic=True)
        try:
            self._run(modules, n_rows=2)  # compiles for any number of rows but one
            gain = plain_s / self._time(modules)
            verdict = f"runs them {gain:.2f} times as fast"
        except Exception as exc:  # noqa: BLE001  whatever the compiler raises, the stage works without it
            gain, verdict = 0.0, f"is not possible here ({one_line(exc)})"
        if gain < 1.05:
            verdict += ": left as they were"
            for module in modules:
                module._compiled_call_impl = None
        log.warning("compiling norms and MLPs %s", verdict)

    def _time(self, modules: Sequence[nn.Module]) -> float:
        """Seconds that `modules` take for one row: the best of five."""
        return min(self._run(modules, n_rows=1) for _ in range(5))

    @torch.inference_mode()
    def _run(self, modules: Sequence[nn.Module], n_rows: int) -> float:
        x = torch.zeros(1, n_rows, self.config.n_embd, device=self.device, dtype=self.dtype)
        start_s = time.perf_counter()
        for module in modules:
            module(x)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start_s


class Ends:
    """What the starter has besides its stage: the embedding before the first block, the head after the last."""

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, torch.Tensor],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Raises `CheckpointError` where a tensor is missing or of another shape. Tied tensors stay tied."""
        self.config, self.device, self.dtype = config, torch.device(device), dtype
        self._modules = _build_ends(config)
        named = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
        own = {name: tensor for name, tensor in named.items() if not name.startswith("h.")}
        _load(self._modules, own, "the embedding and the head", self.device, dtype)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """Token ids (N) -> hidden states (N, C)."""
        x: torch.Tensor = self._modules["wte"](torch.tensor(ids, device=self.device))
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        return x

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, C) after the last block -> logits (N, vocabulary), float32 on the CPU."""
        with memory_errors(f"the logits of {len(x)} rows"):
            x = self._modules["lm_head"](self._modules["ln_f"](x.to(self.device, self.dtype)))
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
    except RuntimeError as exc:  # torch.OutOfMemoryError on GPUs; a plain one from the CPU's allocator
        if "memory" not in str(exc):
            raise
        raise ConfigError(
            f"out of memory for {what}: use fewer samples, a shorter --sequence-length, a smaller --dtype or more nodes"
        ) from exc


def layer_weights(config: Config) -> list[int]:
    """The number of parameters of each layer."""
    sizes: dict[bool, int] = {}
    counts = []
    for layer in range(config.n_layer):
        dense = layer < (config.first_k_dense_replace or 0)
        if dense not in sizes:
            sizes[dense] = sum(tensor.numel() for tensor in _build_block(config, layer).state_dict().values())
        counts.append(sizes[dense])
    return counts


def head_weight(config: Config) -> int:
    """The number of parameters of the head; the embedding is looked up, not multiplied."""
    return int(config.padded_vocab_size * config.n_embd)


def stage_shapes(config: Config, span: Span) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor that a stage over `span` holds."""
    return {
        f"transformer.h.{layer}.{name}": tensor.shape
        for layer in range(*span)
        for name, tensor in _build_block(config, layer).state_dict().items()
    }


def ends_shapes(config: Config) -> dict[str, torch.Size]:
    """Global name -> shape of every tensor of the embedding and the head."""
    state = _build_ends(config).state_dict()
    return {name if name.startswith("lm_head.") else f"transformer.{name}": state[name].shape for name in state}


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


def _build_block(config: Config, layer: int) -> Block:
    """A litgpt block without memory behind its parameters."""
    with torch.device("meta"):
        block = Block(config, layer)
        block.attn = SegmentAttention(config, layer)
    return block.requires_grad_(False)


def _under(prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _load(
    module: nn.Module, weights: Mapping[str, torch.Tensor], what: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Give `module` its weights on `device` as `dtype`; tensors that share memory go on sharing it."""
    moved: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in weights.values():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in moved:
            with memory_errors(f"the weights of {what}"):
                moved[key] = tensor.to(device, dtype if tensor.is_floating_point() else None)
            if moved[key] is not tensor:
                page_out(tensor)
    state = {name: moved[tensor.data_ptr(), tensor.shape] for name, tensor in weights.items()}
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise CheckpointError(f"the weights of {what} do not fit this model: {one_line(exc)}") from exc
    module.requires_grad_(False).eval()


def rotary_tables(config: Config, context: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """litgpt's own tables in float32, without a whole `GPT` to ask for them."""
    cos, sin = GPT.rope_cache(SimpleNamespace(config=config, max_seq_length=context), device)
    return cos, sin
