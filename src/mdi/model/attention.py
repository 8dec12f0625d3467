"""Attention over KV slots: litgpt's own, reading a message's rows segment by segment.

N rows in the message, C = n_embd, H query heads, G kv heads, Q = H / G query heads per kv head,
D head size; a piece of the message has S slots with R rows each, which see L positions
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mdi.model.litgpt_modules import CausalSelfAttention, Config, do_softcapping
from mdi.model.ops import PointwiseOps
from mdi.model.tensors import zeros
from mdi.segments import Segment

PIECE_ROWS = 128  # rows of one slot in one attention call; bounds the mask to Q x 128 x L
# The fixed cost of one more attention call, in positions of one row that are read only to be masked. Slots that are
# filled alike are cheaper in one call; a long one beside short ones would have each of them read its length.
CALL_POSITIONS = 200


@dataclass(frozen=True)
class Piece:
    """Rows that one attention call serves: of one slot, or one row each of neighbouring slots.

    They see the positions `first <= p < stop` of their slots, but for those that the mask hides.
    """

    slots: slice
    rows: slice
    first: int
    stop: int
    mask: torch.Tensor | None  # added to the scores, (Q * R, L) for one slot or else (S, 1, 1, L); None: all is seen


@dataclass(frozen=True)
class AttentionPlan:
    """Where the rows of one message belong. Travels through `Block.forward` as its `mask`."""

    slots: torch.Tensor  # (N,) slot of each row
    positions: torch.Tensor  # (N,) position of each row
    full: list[Piece]
    sliding: list[Piece]  # the same for layers with a sliding window; empty where the model has none


class SegmentAttention(CausalSelfAttention):  # type: ignore[misc]
    """litgpt's attention over KV slots instead of a batch: parameters and options are inherited."""

    def __init__(self, config: Config, layer: int, ops: PointwiseOps) -> None:
        super().__init__(config, layer)
        self.ops = ops

    def allocate(self, n_slots: int, context: int, device: torch.device, dtype: torch.dtype) -> None:
        """Create the slots, each for `context` positions. Memory is touched as positions are filled.

        They hold zeros, because a call may read beyond what is filled: hidden, but it must be a number.
        """
        shape = torch.Size((n_slots, self.config.n_query_groups, context, self.config.head_size))
        self.k_slots = zeros(shape, dtype, device)  # (slots, G, context, D)
        self.v_slots = zeros(shape, dtype, device)
        self.scale = self.mscale**2 / math.sqrt(self.config.attention_scores_scalar or self.config.head_size)

    def fork(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of one slot to another."""
        for slots in (self.k_slots, self.v_slots):
            slots[target, :, :n] = slots[source, :, :n]

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: AttentionPlan, *_: object
    ) -> torch.Tensor:
        """(N, C) -> (N, C); `mask` is the message's plan, `cos` and `sin` are rows of `rotary_tables`."""
        config, plan, n_rows = self.config, mask, len(x)
        n_head, n_groups, head_size = config.n_head, config.n_query_groups, config.head_size
        qkv = self.qkv(x)
        qk = qkv[:, : (n_head + n_groups) * head_size].view(n_rows, -1, head_size)  # (N, H + G, D)
        qk = self._normalize(qk) if config.norm_qk else qk
        qk = self._rotate(qk, cos, sin) if config.rope_n_elem else qk
        self.k_slots[plan.slots, :, plan.positions] = qk[:, n_head:]
        self.v_slots[plan.slots, :, plan.positions] = qkv[:, -n_groups * head_size :].view(n_rows, n_groups, head_size)
        pieces = plan.sliding if self.apply_sliding_window_attention else plan.full
        seen = [self._attend(qk[piece.rows, :n_head], piece) for piece in pieces]
        y: torch.Tensor = self.proj(seen[0] if len(seen) == 1 else torch.cat(seen))
        return y

    def _normalize(self, qk: torch.Tensor) -> torch.Tensor:
        """Queries and keys (N, H + G, D), normalised as the model does: over all heads at once, or each head."""
        n_head = self.config.n_head
        q, k = qk[:, :n_head], qk[:, n_head:]
        if self.config.norm_qk_type == "olmo2":
            normed = self.norm_q(q.flatten(1)), self.norm_k(k.flatten(1))
            return torch.cat(normed, dim=-1).view_as(qk)
        return torch.cat((self.norm_q(q), self.norm_k(k)), dim=1)

    def _rotate(self, qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of queries and keys together, (N, H + G, D): they share the tables."""
        n_rotary, head_size = self.config.rope_n_elem, qk.size(-1)
        turned = qk if n_rotary == head_size else qk[..., :n_rotary]
        if self.config.rope_interleave:  # pairs of neighbours become pairs across the two halves
            turned = turned.reshape(*turned.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2)
        turned = self.ops.rotate(turned, cos, sin)
        return turned if n_rotary == head_size else torch.cat((turned, qk[..., n_rotary:]), dim=-1)

    def _attend(self, q: torch.Tensor, piece: Piece) -> torch.Tensor:
        """(S * R, H, D) -> (S * R, H * D). The query heads of one kv head are rows of one matrix."""
        n_groups, head_size = self.config.n_query_groups, self.config.head_size
        k = self.k_slots[piece.slots, :, piece.first : piece.stop]  # (S, G, L, D)
        v = self.v_slots[piece.slots, :, piece.first : piece.stop]
        q = q.view(k.size(0), -1, n_groups, q.size(1) // n_groups, head_size)  # (S, R, G, Q, D)
        n_rows, n_queries = q.size(1), q.size(3)
        q = q.permute(0, 2, 3, 1, 4).reshape(-1, n_groups, n_queries * n_rows, head_size)  # (S, G, Q * R, D)
        if (cap := self.config.attention_logit_softcapping) is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=piece.mask, scale=self.scale)
        else:
            scores = do_softcapping(q @ k.mT * self.scale, cap)  # (S, G, Q * R, L)
            if piece.mask is not None:
                scores = scores + piece.mask
            y = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v
        y = y.view(-1, n_groups, n_queries, n_rows, head_size).permute(0, 3, 1, 2, 4)  # (S, R, G, Q, D)
        return y.reshape(-1, n_groups * n_queries * head_size)


def make_plan(segments: Sequence[Segment], config: Config, device: torch.device, dtype: torch.dtype) -> AttentionPlan:
    """Work out once per message what every layer needs to know."""
    slots = [segment.slot for segment in segments for _ in range(segment.n)]
    positions = [position for segment in segments for position in range(segment.start, segment.stop)]
    window = config.sliding_window_size
    masks = _Masks(config.n_head // config.n_query_groups, device, dtype)
    return AttentionPlan(
        torch.tensor(slots, device=device),
        torch.tensor(positions, device=device),
        list(_pieces(segments, None, masks)),
        list(_pieces(segments, window, masks)) if window else [],
    )


def _pieces(segments: Sequence[Segment], window: int | None, masks: "_Masks") -> Iterator[Piece]:
    row = 0
    for run in _runs(segments, window):
        if len(run) > 1:
            seen = [(_first_seen(segment.start, window), segment.stop) for segment in run]
            first, stop = min(first for first, _ in seen), max(stop for _, stop in seen)
            slots, rows = slice(run[0].slot, run[-1].slot + 1), slice(row, row + len(run))
            yield Piece(slots, rows, first, stop, masks.of_slots(seen, first, stop))
            row += len(run)
            continue
        (segment,) = run
        for start in range(segment.start, segment.stop, PIECE_ROWS):
            stop = min(start + PIECE_ROWS, segment.stop)
            first = _first_seen(start, window)
            mask = masks.of_rows(start, stop, first, window) if stop - start > 1 else None
            yield Piece(slice(segment.slot, segment.slot + 1), slice(row, row + stop - start), first, stop, mask)
            row += stop - start


def _runs(segments: Sequence[Segment], window: int | None) -> Iterator[list[Segment]]:
    """Segments of one row in neighbouring slots together, as long as one call for all is cheaper; others alone."""
    run: list[Segment] = []
    first = stop = 0
    # A joined call reads first..stop of every slot in it, so its cost is that width times its rows. Greedy, because a
    # slice of neighbouring slots is a view of their memory; any other set of slots would have to be copied first.
    for segment in segments:
        own_first = _first_seen(segment.start, window)
        joined_first, joined_stop = min(first, own_first), max(stop, segment.stop)
        joined = (joined_stop - joined_first) * (len(run) + 1)
        apart = (stop - first) * len(run) + segment.stop - own_first + CALL_POSITIONS
        if run and segment.n == run[-1].n == 1 and segment.slot == run[-1].slot + 1 and joined <= apart:
            run.append(segment)
            first, stop = joined_first, joined_stop
            continue
        if run:
            yield run
        run, first, stop = [segment], own_first, segment.stop
    if run:
        yield run


def _first_seen(position: int, window: int | None) -> int:
    return max(0, position - window + 1) if window else 0


@dataclass(frozen=True)
class _Masks:
    heads_per_group: int
    device: torch.device
    dtype: torch.dtype

    def of_rows(self, start: int, stop: int, first: int, window: int | None) -> torch.Tensor:
        """(Q * R, L) for consecutive rows of one slot: -inf where a row may not look, 0 elsewhere."""
        rows = torch.arange(start, stop, device=self.device)[:, None]
        columns = torch.arange(first, stop, device=self.device)
        hidden = columns > rows
        if window:
            hidden |= columns <= rows - window
        return self._of(hidden).repeat(self.heads_per_group, 1)

    def of_slots(self, seen: Sequence[tuple[int, int]], first: int, stop: int) -> torch.Tensor | None:
        """(S, 1, 1, L) for one row of each slot; None where all see the same positions."""
        if all(span == (first, stop) for span in seen):
            return None
        bounds = torch.tensor(seen, device=self.device)[:, :, None, None, None]  # (S, 2, 1, 1, 1)
        columns = torch.arange(first, stop, device=self.device)
        return self._of((columns < bounds[:, 0]) | (columns >= bounds[:, 1]))

    def _of(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(hidden.shape, device=self.device, dtype=self.dtype).masked_fill_(hidden, -torch.inf)
