"""What numbers may be: one table for the flags of a command line and for requests to the engine."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mdi.errors import ConfigError
from mdi.strings import quoted

MAX_NUMBER = 10**12  # of any number that a user gives
MAX_SIZE_BYTES = 10**15
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?([MGT]I?B)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Interval:
    """The least and the greatest value that is allowed, both included unless `excludes_low`."""

    low: float
    high: float = MAX_NUMBER
    excludes_low: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise `ConfigError` naming `name` unless `value` is inside; NaN never is."""
        if not self.low <= value <= self.high or (self.excludes_low and value == self.low):
            allowed = f"above {self.low:g} and at most" if self.excludes_low else f"a number from {self.low:g} to"
            raise ConfigError(f"{name} {value}: must be {allowed} {self.high:.15g}")  # not 1e+12


def parse_size(text: str, name: str) -> int:
    """The bytes of `3GB`, `512 MB` or `1.5GiB`. Raises `ConfigError` naming `name`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{name}: {quoted(text)} is not a size, such as 3GB, 512MB or 1.5GiB")
    n_bytes = round(float(match[1]) * _UNITS[match[2].upper()])
    if not 1 <= n_bytes <= MAX_SIZE_BYTES:
        raise ConfigError(f"{name}: {quoted(text)} is not from 1 byte to 1000TB")
    return n_bytes


# Those of OpenAI's API where it has the parameter, except temperature. With that of repetition_penalty,
# every logit that a working model computes stays finite.
SAMPLING_BOUNDS = {
    "temperature": Interval(0),
    "top_k": Interval(0),
    "top_p": Interval(0, 1, excludes_low=True),
    "min_p": Interval(0, 1),
    "frequency_penalty": Interval(-2, 2),
    "presence_penalty": Interval(-2, 2),
    "repetition_penalty": Interval(0.01, 100),
    "logprobs": Interval(0, 20),
}
BIAS_BOUNDS = Interval(-100, 100)

LogitBias = Sequence[tuple[int, float]]  # token ids, and what is added to their logits


class HasLogitBias(Protocol):
    """Besides it, the fields of `SAMPLING_BOUNDS`."""

    @property
    def logit_bias(self) -> LogitBias: ...


def check_sampling(params: HasLogitBias, name_of: Callable[[str], str] = str) -> None:
    """Raise `ConfigError` for a field that is out of its bounds, by the name that the user knows it by."""
    for field, bounds in SAMPLING_BOUNDS.items():
        if (value := getattr(params, field)) is not None:
            bounds.check(name_of(field), value)
    name = name_of("logit_bias")
    seen: set[int] = set()
    for token, bias in params.logit_bias:
        if token < 0:
            raise ConfigError(f"{name} {token}={bias:g}: a token id is 0 or more")
        if token in seen:
            raise ConfigError(f"{name} {token}={bias:g}: token {token} is given twice")
        BIAS_BOUNDS.check(f"{name} {token}:", bias)
        seen.add(token)


def check_biased_tokens(bias: LogitBias, n_vocab: int, name: str = "logit_bias") -> None:
    """Raise `ConfigError` for a token that a model with `n_vocab` tokens does not have."""
    if (token := max((token for token, _ in bias), default=0)) >= n_vocab:
        raise ConfigError(f"{name} {token}: this model's token ids are 0 to {n_vocab - 1}")
