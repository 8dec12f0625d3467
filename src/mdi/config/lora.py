"""`--lora`: how large adapters are, and how much they count."""

from dataclasses import dataclass

from mdi.config.bounds import Interval
from mdi.errors import ConfigError

MAX_RANK = 4096


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685)."""

    r: int  # rank of the product that is added to a weight
    alpha: float  # it is multiplied by alpha / r
    dropout: float  # probability that an input of an adapter is left out in training

    def __post_init__(self) -> None:
        Interval(1, MAX_RANK).check("--lora: r", self.r)
        Interval(0, excludes_low=True).check("--lora: alpha", self.alpha)
        Interval(0, 0.99).check("--lora: dropout", self.dropout)


def parse_lora(text: str) -> Lora:
    """The value of `r,alpha,dropout`. Raises `ConfigError`."""
    try:
        r, alpha, dropout = text.split(",")
        return Lora(int(r), float(alpha), float(dropout))
    except ValueError as exc:
        raise ConfigError(f"--lora {text}: expected r,alpha,dropout, such as 8,16,0.05") from exc
