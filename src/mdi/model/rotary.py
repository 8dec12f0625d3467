"""Rotary position embedding for longer contexts: the methods that litgpt's tables do not have, or have wrong.

A method is a set of numbers, as transformers names them in `rope_parameters`, and gives the frequencies of a context.
In a configuration they are `rope_adjustments`, with the method's name under `rope_type`; without that key the
adjustments are litgpt's own (linear scaling, Llama 3's).

Shapes: D rotary elements of a head, D / 2 frequencies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from mdi.documents import misfit

KIND = "rope_type"  # the key of `rope_adjustments` that names a method


def plain_frequencies(n_elem: int, base: float) -> torch.Tensor:
    """Angles per position (D / 2), in radians: RoFormer, https://arxiv.org/abs/2104.09864, section 3.2."""
    return 1.0 / base ** _exponents(n_elem)


@dataclass(frozen=True)
class Yarn:
    """Low frequencies are interpolated, high ones kept: YaRN, https://arxiv.org/abs/2309.00071, section 3.

    litgpt 0.5.13 has the method too, but interpolates the high frequencies.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float  # of cosines and sines, so that scores are scaled by its square
    beta_fast: float = 32.0  # rotations in the original context from which a frequency is kept
    beta_slow: float = 1.0  # rotations up to which it is interpolated
    truncate: bool = True  # the bounds between both, to whole elements

    def frequencies(self, n_elem: int, base: float, context: int) -> torch.Tensor:
        """(D / 2), the same for every context."""
        del context
        low, high = self._bound(self.beta_fast, n_elem, base), self._bound(self.beta_slow, n_elem, base)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, n_elem - 1)
        if low == high:
            high += 0.001  # as transformers does, against a division by zero
        interpolated = ((torch.arange(n_elem // 2) - low) / (high - low)).clamp(0, 1)
        plain = plain_frequencies(n_elem, base)
        return plain / self.factor * interpolated + plain * (1 - interpolated)

    def _bound(self, n_rotations: float, n_elem: int, base: float) -> float:
        """The element whose frequency makes `n_rotations` in the original context."""
        wavelength = self.original_max_position_embeddings / n_rotations
        return n_elem * math.log(wavelength / (2 * math.pi)) / (2 * math.log(base))


@dataclass(frozen=True)
class DynamicNtk:
    """A larger base for a context beyond the original one, "dynamic NTK" of bloc97 and emozilla, as transformers has
    it (`_compute_dynamic_ntk_parameters`): https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float = 1.0

    def frequencies(self, n_elem: int, base: float, context: int) -> torch.Tensor:
        """(D / 2) for a sequence of `context` positions."""
        times = max(context / self.original_max_position_embeddings, 1.0)
        stretch: float = (self.factor * times - (self.factor - 1)) ** (n_elem / (n_elem - 2))
        return plain_frequencies(n_elem, base * stretch)


@dataclass(frozen=True)
class LongRope:
    """Each frequency divided by a factor of its own: LongRoPE, https://arxiv.org/abs/2402.13753."""

    short_factor: list[float]
    long_factor: list[float]
    original_max_position_embeddings: int
    attention_factor: float

    def frequencies(self, n_elem: int, base: float, context: int) -> torch.Tensor:
        """(D / 2); the long factors for a context beyond the original one, the short ones up to it."""
        factors = self.long_factor if context > self.original_max_position_embeddings else self.short_factor
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * base ** _exponents(n_elem))


Scaling: TypeAlias = Yarn | DynamicNtk | LongRope
_METHODS: dict[str, type[Scaling]] = {"yarn": Yarn, "dynamic": DynamicNtk, "longrope": LongRope}


def scaling_of(adjustments: Mapping[str, Any] | None, n_elem: int) -> Scaling | None:
    """The method that a configuration's `rope_adjustments` name; None where they are litgpt's own.

    Raises `ValueError` for an unknown method, and for numbers with which it cannot be computed.
    """
    if adjustments is None or KIND not in adjustments:
        return None
    values = dict(adjustments)
    method = _METHODS.get(str(kind := values.pop(KIND)))
    if method is None:
        raise ValueError(f"{KIND} {kind!r} in rope_adjustments is not one of {', '.join(_METHODS)}")
    if problem := misfit(values, method):
        raise ValueError(f"rope_adjustments: {problem}")
    scaling = method(**values)
    _check(scaling, n_elem)
    return scaling


def _check(scaling: Scaling, n_elem: int) -> None:
    numbers = [value for value in vars(scaling).values() if not isinstance(value, list)]
    if isinstance(scaling, LongRope):
        numbers += [*scaling.short_factor, *scaling.long_factor]
        if not len(scaling.short_factor) == len(scaling.long_factor) == n_elem // 2:
            raise ValueError(f"rope_adjustments: longrope needs {n_elem // 2} short and long factors")
    elif not scaling.factor >= 1:
        raise ValueError(f"rope_adjustments: factor is {scaling.factor}, less than 1")
    if not all(0 < float(number) < math.inf for number in numbers if not isinstance(number, bool)):
        raise ValueError("rope_adjustments: a number is not positive and finite")
    if n_elem < 4 or n_elem % 2:
        raise ValueError(f"rope_adjustments: {n_elem} rotary elements are not an even number from 4 on")


def tables(
    scaling: Scaling, n_elem: int, base: float, context: int, local_base: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each (context, D), in float32; (context, D, 2) with a `local_base`.

    `local_base` is that of the layers with a sliding window, which are not scaled and come second.
    """
    positions = torch.arange(context).float()
    scaled = _angles(positions, scaling.frequencies(n_elem, base, context))
    cos, sin = scaled.cos() * scaling.attention_factor, scaled.sin() * scaling.attention_factor
    if local_base is None:
        return cos, sin
    local = _angles(positions, plain_frequencies(n_elem, local_base))
    return torch.stack((cos, local.cos()), -1), torch.stack((sin, local.sin()), -1)


def _angles(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    return torch.outer(positions, frequencies).repeat(1, 2)  # (context, D)


def _exponents(n_elem: int) -> torch.Tensor:
    return torch.arange(0, n_elem, 2).float() / n_elem
