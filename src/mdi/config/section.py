"""What the options of all scripts are made of: sections, their defaults, and checks that several of them share."""

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from mdi.config.bounds import Interval
from mdi.errors import ConfigError
from mdi.formats import DEVICE, DTYPES, KV_DTYPES, MODES

S = TypeVar("S", bound="Section")


@dataclass(frozen=True)
class Section:
    """What all options have in common: each section checks its own fields and calls the next one's check."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that is not allowed."""


def section_of(kind: type[S], options: Section) -> S:
    """The fields of `options` that belong to the section `kind`, as a value of their own."""
    return kind(**{item.name: getattr(options, item.name) for item in fields(kind)})


def defaults_of(options: type) -> dict[str, Any]:
    """Field name -> default, so that the parsers and the dataclasses cannot disagree."""
    return {item.name: item.default for item in fields(options)}


def check_dtype(dtype: str | None) -> None:
    """Raise `ConfigError` unless `dtype` is None or one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")


def check_device(device: str | None) -> None:
    """Raise `ConfigError` unless `device` is None or looks like a device of torch."""
    if device is not None and not DEVICE.fullmatch(device):
        raise ConfigError(f"--device {device}: expected cpu, mps, cuda or cuda:N")


def check_quantize(mode: str | None) -> None:
    """Raise `ConfigError` unless `mode` is None or one of `MODES`."""
    if mode is not None and mode not in MODES:
        raise ConfigError(f"--quantize {mode}: expected one of {', '.join(MODES)}")


def check_kv_dtype(dtype: str | None) -> None:
    """Raise `ConfigError` unless `dtype` is None or one of `KV_DTYPES`."""
    if dtype is not None and dtype not in KV_DTYPES:
        raise ConfigError(f"--kv-dtype {dtype}: expected one of {', '.join(KV_DTYPES)}")


def at_least(flag: str, value: float, minimum: float) -> None:
    """Raise `ConfigError` naming `flag` where `value` is below `minimum`, or no number."""
    Interval(minimum).check(flag, value)


def flag_of(name: str) -> str:
    """The flag of a field, as the user types it."""
    return f"--{name.replace('_', '-')}"
