"""What a sample's own tokens, and its user, change about its logits before a token is chosen.

Shapes: V tokens in the vocabulary, U distinct tokens that are penalized.
"""

from collections.abc import Sequence

import torch

from mdi.engine.sampling_params import SamplingParams

_SPARE = 64  # tokens that there is room for at the beginning


class LogitAdjustment:
    """Logit bias and penalties of one sample, kept from token to token: the text is not read again.

    `count` takes each token once, right after it was chosen. So the counts hold for the first row of a message and for
    those that verify a draft, and a replay, which chooses nothing, leaves them.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Begin behind `prompt` and the `tokens` that were generated before."""
        self._params = params
        self._repeats = params.repetition_penalty != 1  # then the tokens of the prompt matter too
        self._counts_tokens = self._repeats or params.frequency_penalty != 0 or params.presence_penalty != 0
        self._bias_ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.long)
        self._bias = torch.tensor([bias for _, bias in params.logit_bias])
        distinct = dict.fromkeys(prompt) if self._repeats else {}
        self._place = {
            token: place for place, token in enumerate(distinct)
        }  # in the two tensors, which have spare room
        self._ids = torch.tensor([*distinct, *[0] * _SPARE])
        self._counts = torch.zeros(len(self._ids))  # how often the continuation has the token
        for token in tokens:
            self.count(token)

    def count(self, token: int) -> None:
        """`token` was chosen."""
        if self._counts_tokens:
            self._counts[self._place_of(token)] += 1

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits (V) of the next token -> adjusted ones; the same tensor where there is nothing to adjust."""
        n_distinct = len(self._place)
        if not n_distinct and not len(self._bias):
            return logits
        adjusted = logits.clone()
        adjusted[self._bias_ids] += self._bias
        ids, counts = self._ids[:n_distinct], self._counts[:n_distinct]
        x = adjusted[ids]  # (U)
        if self._repeats:
            penalty = self._params.repetition_penalty
            x = torch.where(x > 0, x / penalty, x * penalty)
        x -= self._params.frequency_penalty * counts
        x -= self._params.presence_penalty * (counts > 0)
        adjusted[ids] = x
        return adjusted

    def _place_of(self, token: int) -> int:
        """The place of a token, a new one for a new token. Full tensors double, so that few are copied."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = torch.cat([self._ids, torch.empty_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[place] = token
        return place
