"""What a node takes for a message of a model, timed on weights that were made up in the shape of its layers.

A node is measured as it will compute: with its backend, dtype, quantization and threads, beside whatever else runs on
the machine. So times are averages, not the best ones. C = n_embd.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mdi.checkpoint.config import config_from_dict, config_to_dict
from mdi.cluster.frame_loop import FrameLoop
from mdi.control.measurement import HeadTime, LayerTime
from mdi.engine.sampler import choose
from mdi.engine.sampling_params import SamplingParams
from mdi.liveness import no_tick
from mdi.model.architecture import ModelConfig
from mdi.model.build import Placement
from mdi.model.quant import held_bytes
from mdi.model.shapes import head_shapes, kv_bytes, stage_shapes
from mdi.model.span import Span
from mdi.model.span_engine import HeadFactory, SpanEngine, SpanEngineFactory
from mdi.model.synthetic import synthetic_ends, synthetic_layers
from mdi.model.tensors import dtype_name, from_buffer, to_buffer
from mdi.segments import Segment

ROWS = (1, 4, 8, 16)  # of a message that carries the next token of so many samples
PIECE_ROWS = 128  # of a piece of a prompt
CONTEXTS = (128, 512)  # positions
TIMING_S = 0.2  # that one thing is repeated for, at least
MAX_TIMING_S = 2 * TIMING_S  # with what is done between
MAX_PIECE_S = 0.5  # a layer's; a piece that would take longer is reckoned from messages of 16 rows
MIN_LAYERS_PART = 0.1  # of the time of a message
# Of the layers that are timed: so many times what the caches hold. Of four times as much, which passes over and over, a
# quarter stays in them, and a layer takes three quarters of what it takes in a whole stage.
CACHES = 16
MAX_LAYERS_BYTES = 512 << 20
HEAD_BYTES = 128 << 20  # of the part of the head that is timed

Clock = Callable[[], float]


@dataclass(frozen=True)
class StageTimer:
    """Times the layers and the head of one model on one node. Called only from the compute thread."""

    config: ModelConfig
    stored_dtype: torch.dtype  # of the weights in the model's file
    placement: Placement
    make_engine: SpanEngineFactory
    make_head: HeadFactory
    clock: Clock = time.perf_counter
    room_bytes: float = math.inf  # that timing may take; one layer and a small part of the head are timed at least
    cache_bytes: float = math.inf  # of all caches, as far as is known

    @property
    def needed_bytes(self) -> int:
        """The memory that timing takes, beside the stored weight of one tensor."""
        return self._head_bytes + (self._n_layers + self._n_few) * self._layer_bytes

    def message_s(self) -> float:
        """Seconds that a message takes besides, however few layers there are.

        By a message through one layer and another one through all. Before each time all of them compute, as they do in
        a ring: they leave nothing else in the caches, and what takes ten microseconds there takes a hundred.
        """
        n_few = self._n_few
        pass_all = self._usual_message(self._stage)
        pass_few = self._usual_message(self._layer if n_few else self._engine(0))
        all_s, few_s = self._mean_s(pass_all), self._mean_s(pass_few, pass_all)
        layer_s = (all_s - few_s) / (self._n_layers - n_few)
        return max(0.0, few_s - n_few * layer_s)

    def frame_s(self) -> float:
        """Seconds that it takes to receive a message and to send the next one, beside computing it."""
        pass_all, placement = self._usual_message(self._stage), self.placement
        with FrameLoop(placement.rows, self.config.n_embd, dtype_name(placement.dtype)) as loop:
            return self._mean_s(loop.turn, pass_all)

    def layers(self, message_s: float) -> tuple[LayerTime, ...]:
        """Seconds of a layer for every number of rows, at the end of shorter and of longer sequences.

        Args:
            message_s: what a message takes besides.
        """
        times = []
        for context in sorted({min(context, self.config.block_size) for context in CONTEXTS}):
            for engine in (self._stage, self._layer):
                _fill_slots(engine, max(ROWS), context)
            for rows in ROWS:
                message = [Segment(slot, context - 1, 1, 1) for slot in range(rows)]
                warm_up, passing = self._passing(self._layer, message), self._passing(self._stage, message)
                pass_s = self._mean_s(passing, warm_up=warm_up)
                times.append(LayerTime(rows, context, _without(message_s, pass_s) / self._n_layers))
            times.append(self._piece(context, times[-1], message_s))
        return tuple(times)

    def _piece(self, context: int, last: LayerTime, message_s: float) -> LayerTime:
        """A piece of a prompt, in one slot. On a slow machine it is in proportion to its rows, as products then are.

        One layer tells enough, with its weights not in the caches.
        """
        rows = min(PIECE_ROWS, context)
        reckoned_s = last.seconds * rows / last.rows
        if reckoned_s > MAX_PIECE_S:
            return LayerTime(rows, context, reckoned_s)
        pass_all = self._passing(self._stage, [Segment(0, context - 1, 1, 1)])
        pass_s = self._mean_s(self._passing(self._layer, [Segment(0, context - rows, rows, 1)]), pass_all)
        return LayerTime(rows, context, _without(message_s, pass_s))

    def head(self) -> tuple[HeadTime, ...]:
        """Seconds of embedding, head and sampling for every number of rows.

        Of a large vocabulary only a part is timed: all three are in proportion to it. Before each time the layers
        compute, as they do in a ring: they leave little of the head in the caches.
        """
        config, placement = self._head_config, self.placement
        head = self.make_head(config, synthetic_ends(config, self.stored_dtype), placement)
        params, share = SamplingParams(1), self.config.padded_vocab_size / config.padded_vocab_size
        layers = self._stage
        _fill_slots(layers, 1, 1)
        row = torch.zeros(1, config.n_embd, dtype=placement.dtype, device=placement.device)

        def choose_tokens(rows: int) -> None:
            x = head.embed([slot % config.padded_vocab_size for slot in range(rows)], [0] * rows)
            for logits in head.logits(x):
                choose(logits, params, None)

        def pass_layers() -> None:
            layers.forward(row, [Segment(0, 0, 1, 1)])

        return tuple(
            HeadTime(rows, share * self._mean_s(functools.partial(choose_tokens, rows), pass_layers)) for rows in ROWS
        )

    def keep_busy(self, is_needed: Callable[[], bool]) -> None:
        """Compute usual messages, which are not timed, until they are not needed any more: asked before each of them.

        One takes a small part of what the longest takes that is timed: whoever wants something else waits no longer.
        """
        pass_message = self._usual_message(self._stage)
        while is_needed():
            pass_message()
            self.placement.tick()

    def _usual_message(self, engine: SpanEngine) -> Callable[[], object]:
        """What computes the next token of as many samples as usual, in slots of its own."""
        rows, context = self.placement.rows, min(CONTEXTS[0], self.config.block_size)
        _fill_slots(engine, rows, context)
        return self._passing(engine, [Segment(slot, context - 1, 1, 1) for slot in range(rows)])

    @functools.cached_property
    def _stage(self) -> SpanEngine:
        return self._engine(self._n_layers)

    @functools.cached_property
    def _layer(self) -> SpanEngine:
        """A stage of one layer."""
        return self._stage if self._n_layers == 1 else self._engine(1)

    @functools.cached_property
    def _n_layers(self) -> int:
        """So many that they do not fit into a cache, if the model has as many and the memory is there."""
        not_cached = min(CACHES * self.cache_bytes, MAX_LAYERS_BYTES) / _weights_bytes(self.config, self.placement, 1)
        fitting = (self.room_bytes - self._head_bytes) / self._layer_bytes - 1  # see `_layer`
        return int(max(1, min(self.config.n_layer, not_cached, fitting)))

    @property
    def _n_few(self) -> int:
        """Layers of the second stage."""
        return min(1, self._n_layers - 1)

    @functools.cached_property
    def _layer_bytes(self) -> int:
        """Of one layer, with its part of all slots."""
        slot = kv_bytes(self.config, 1, CONTEXTS[-1], self.placement.dtype)
        return _weights_bytes(self.config, self.placement, 1) + (max(ROWS) + 1) * slot

    @property
    def _head_bytes(self) -> int:
        return _weights_bytes(self._head_config, self.placement, None)

    @functools.cached_property
    def _head_config(self) -> ModelConfig:
        """With so many tokens that the head, and the embedding beside it, keep to their part of the memory."""
        row_bytes = self.config.n_embd * self.placement.dtype.itemsize
        part_bytes = min(HEAD_BYTES, self.room_bytes / 8)
        n_tokens = min(self.config.padded_vocab_size, max(1024, int(part_bytes // row_bytes)))
        return config_from_dict(config_to_dict(self.config) | {"vocab_size": n_tokens, "padded_vocab_size": n_tokens})

    def _engine(self, n_layers: int) -> SpanEngine:
        span, placement = Span(0, n_layers), self.placement
        weights = synthetic_layers(self.config, span, self.stored_dtype, placement.quantize)
        return self.make_engine(self.config, span, weights, placement)

    def _passing(self, engine: SpanEngine, segments: Sequence[Segment]) -> Callable[[], object]:
        """What computes a message, from the bytes that arrive to the bytes that are sent."""
        dtype, n_embd = dtype_name(self.placement.dtype), self.config.n_embd
        rows = sum(segment.n for segment in segments)
        values = torch.randn(rows, n_embd, generator=torch.Generator().manual_seed(rows))
        buffer = memoryview(bytearray(to_buffer(values, dtype)))
        return lambda: to_buffer(engine.forward(from_buffer(buffer, dtype, n_embd), segments), dtype)

    def _mean_s(
        self,
        action: Callable[[], object],
        between: Callable[[], object] = no_tick,
        warm_up: Callable[[], object] | None = None,
    ) -> float:
        """Seconds that `action` takes on average.

        Args:
            between: what is done before each time, and not timed.
            warm_up: what is done first; None: `action`.
        """
        clock, n, passed_s = self.clock, 0, 0.0
        (warm_up or action)()
        first_s = clock()
        while not n or (passed_s < TIMING_S and clock() - first_s < MAX_TIMING_S):
            between()
            began_s = clock()
            action()
            passed_s += clock() - began_s
            self.placement.tick()
            n += 1
        return passed_s / n


def _without(message_s: float, pass_s: float) -> float:
    """What a message takes without what it takes besides. On a busy machine the latter may come out too long."""
    return max(pass_s - message_s, MIN_LAYERS_PART * pass_s)


def _fill_slots(engine: SpanEngine, n_slots: int, context: int) -> None:
    """Make slots whose memory is really there: what nobody has written to is one page, which a cache holds."""
    engine.allocate(n_slots + 1, context)
    for slot in range(n_slots):
        engine.fork(n_slots, slot, context)


def _weights_bytes(config: ModelConfig, placement: Placement, n_layers: int | None) -> int:
    """Of so many layers; None: of the head."""
    shapes = head_shapes(config) if n_layers is None else stage_shapes(config, Span(0, n_layers))
    return held_bytes(shapes, placement.dtype, placement.quantize, placement.device.type)
