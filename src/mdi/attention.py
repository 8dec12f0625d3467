"""Attention over KV slots: litgpt's own, reading a message's rows segment by segment.

N rows in the message, C = n_embd, H query heads, G kv heads, Q = H / G query heads per kv head,
D head size, L positions that a piece of a segment can see
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from litgpt.config import Config
from litgpt.model import CausalSelfAttention, apply_rope, apply_rope_interleave, do_softcapping

from mdi.messages import Segment

PIECE_ROWS = 128  # rows of one attention call; bounds the mask to Q x 128 x L


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one segment, and the positions `first <= p < stop` of its slot that they see."""

    slot: int
    rows: slice
    first: int
    stop: int
    mask: torch.Tensor | None  # (Q * rows, stop - first), added to the scores; None: all are visible


@dataclass(frozen=True)
class Plan:
    """Where the rows of one message belong. Travels through `Block.forward` as its `mask`."""

    slots: torch.Tensor  # (N,) slot of each row
    positions: torch.Tensor  # (N,) position of each row
    full: list[Piece]
    sliding: list[Piece]  # the same for layers with a sliding window; empty where the model has none


class SegmentAttention(CausalSelfAttention):  # type: ignore[misc]
    """litgpt's attention over KV slots instead of a batch: parameters and options are inherited."""

    def allocate(self, n_slots: int, context: int, device: torch.device, dtype: torch.dtype) -> None:
        """Create the slots, each for `context` positions. Memory is touched as positions are filled."""
        shape = (n_slots, self.config.n_query_groups, context, self.config.head_size)
        self.k_slots = torch.empty(shape, device=device, dtype=dtype)  # (slots, G, context, D)
        self.v_slots = torch.empty(shape, device=device, dtype=dtype)
        self.scale = self.mscale**2 / math.sqrt(self.config.attention_scores_scalar or self.config.head_size)

    def fork(self, source: int, target: int, n: int) -> None:
        """Copy the first `n` positions of one slot to another."""
        for slots in (self.k_slots, self.v_slots):
            slots[target, :, :n] = slots[source, :, :n]

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: Plan, *_: object) -> torch.Tensor:
        """(1, N, C) -> (1, N, C); `mask` is the message's plan, `cos` and `sin` are (1, N, rotary elements)."""
        config, plan, n_rows = self.config, mask, x.size(1)
        n_head, n_groups, head_size = config.n_head, config.n_query_groups, config.head_size
        qk, v = self.qkv(x).split(((n_head + n_groups) * head_size, n_groups * head_size), dim=-1)
        q, k = self._rotate(self._normalize(qk), cos, sin)  # (1, H, N, D), (1, G, N, D)
        self.k_slots[plan.slots, :, plan.positions] = k[0].transpose(0, 1)
        self.v_slots[plan.slots, :, plan.positions] = v.view(n_rows, n_groups, head_size)
        q = q.view(n_groups, n_head // n_groups, n_rows, head_size)  # (G, Q, N, D)
        y = x.new_empty(n_rows, n_head, head_size)
        for piece in plan.sliding if self.apply_sliding_window_attention else plan.full:
            y[piece.rows] = self._attend(q[:, :, piece.rows], piece)
        out: torch.Tensor = self.proj(y.view(1, n_rows, n_head * head_size))
        return out

    def _normalize(self, qk: torch.Tensor) -> torch.Tensor:
        """(1, N, (H + G) * D) -> (1, H + G, N, D), queries and keys normalised where the model does so."""
        config = self.config
        n_rows, head_size = qk.size(1), config.head_size
        if config.norm_qk and config.norm_qk_type == "olmo2":  # over all heads at once
            width = config.n_head * head_size
            qk = torch.cat((self.norm_q(qk[..., :width]), self.norm_k(qk[..., width:])), dim=-1)
        qk = qk.view(1, n_rows, -1, head_size).transpose(1, 2)
        if config.norm_qk and config.norm_qk_type == "default":  # each head by itself
            n_head = config.n_head
            qk = torch.cat((self.norm_q(qk[:, :n_head]), self.norm_k(qk[:, n_head:])), dim=1)
        return qk

    def _rotate(self, qk: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary embedding of queries and keys together; they share the tables."""
        n_rotary, rotate = self.config.rope_n_elem, apply_rope_interleave if self.config.rope_interleave else apply_rope
        rotated = rotate(qk[..., :n_rotary], cos, sin)
        if n_rotary < qk.size(-1):
            rotated = torch.cat((rotated, qk[..., n_rotary:]), dim=-1)
        n_head = self.config.n_head
        return rotated[:, :n_head], rotated[:, n_head:]

    def _attend(self, q: torch.Tensor, piece: Piece) -> torch.Tensor:
        """(G, Q, rows, D) -> (rows, H, D). The query heads of one kv head are rows of one matrix."""
        n_rows, head_size = q.size(2), q.size(3)
        q = q.reshape(1, q.size(0), -1, head_size)  # (1, G, Q * rows, D)
        k = self.k_slots[piece.slot, None, :, piece.first : piece.stop]  # (1, G, L, D)
        v = self.v_slots[piece.slot, None, :, piece.first : piece.stop]
        if (cap := self.config.attention_logit_softcapping) is None:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=piece.mask, scale=self.scale)
        else:
            scores = do_softcapping(q @ k.mT * self.scale, cap)  # (1, G, Q * rows, L)
            if piece.mask is not None:
                scores = scores + piece.mask
            y = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype) @ v
        return y.view(-1, n_rows, head_size).transpose(0, 1)


def make_plan(segments: Sequence[Segment], config: Config, device: torch.device, dtype: torch.dtype) -> Plan:
    """Work out once per message what every layer needs to know."""
    slots = [segment.slot for segment in segments for _ in range(segment.n)]
    positions = [position for segment in segments for position in range(segment.start, segment.stop)]
    window = config.sliding_window_size
    masks = _Masks(config.n_head // config.n_query_groups, device, dtype)
    return Plan(
        torch.tensor(slots, device=device),
        torch.tensor(positions, device=device),
        _pieces(segments, None, masks),
        _pieces(segments, window, masks) if window else [],
    )


def _pieces(segments: Sequence[Segment], window: int | None, masks: "_Masks") -> list[Piece]:
    pieces, row = [], 0
    for segment in segments:
        for start in range(segment.start, segment.stop, PIECE_ROWS):
            stop = min(start + PIECE_ROWS, segment.stop)
            first = max(0, start - window + 1) if window else 0
            mask = masks.build(start, stop, first, window) if stop - start > 1 else None
            pieces.append(Piece(segment.slot, slice(row, row + stop - start), first, stop, mask))
            row += stop - start
    return pieces


@dataclass(frozen=True)
class _Masks:
    heads_per_group: int
    device: torch.device
    dtype: torch.dtype

    def build(self, start: int, stop: int, first: int, window: int | None) -> torch.Tensor:
        """(Q * rows, L): -inf where a row may not look, 0 elsewhere."""
        rows = torch.arange(start, stop, device=self.device)[:, None]
        columns = torch.arange(first, stop, device=self.device)
        hidden = columns > rows
        if window:
            hidden |= columns <= rows - window
        mask = torch.zeros(hidden.shape, device=self.device, dtype=self.dtype).masked_fill_(hidden, -torch.inf)
        return mask.repeat(self.heads_per_group, 1)
