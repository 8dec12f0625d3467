"""Command lines -> frozen dataclasses; every check on what a user types. Errors name the flag and what is allowed."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mdi.config.paths import CHECKPOINTS_DIR, SETTINGS_DIR
from mdi.errors import ConfigError
from mdi.formats import DEVICE, DTYPES, MODES, Mode

MOST = 10**12  # of any number on a command line
MOST_ROWS = 65536  # of a message


@dataclass(frozen=True)
class NodeOptions:
    """What can be said to any node on its command line."""

    verb: bool = False
    debug: bool = False
    compile: bool = False
    device: str | None = None
    dtype: str | None = None
    quantize: Mode | None = None
    seed: int = 10137
    ckpt: Path | None = None
    chunk: Path | None = None
    nodes_config: Path = SETTINGS_DIR / "configuration.json"

    def __post_init__(self) -> None:
        if self.device is not None and not DEVICE.fullmatch(self.device):
            raise ConfigError(f"--device {self.device}: expected cpu, mps, cuda or cuda:N")
        check_dtype(self.dtype)
        _check_quantize(self.quantize)
        if not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed}: does not fit in 64 bits")
        if self.chunk is not None and not self.chunk.is_file():
            raise ConfigError(f"--chunk {self.chunk}: no such file")


@dataclass(frozen=True)
class SecondaryOptions(NodeOptions):
    """The options of `secondary.py`."""

    index: int | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True)
class StarterOptions(NodeOptions):
    """The options of `starter.py`."""

    plots: bool = False
    prompt: str = "Who are you?"
    n_samples: int = 3
    n_tokens: int = 300
    sequence_length: int | None = None
    time_run: Path | None = None
    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0
    ignore_eos: bool = False
    keep_nodes: bool = False
    prompt_style: str | None = None
    split: str = "auto"
    stream: bool | None = None
    output: Path | None = None
    peer_timeout_s: float = 5.0
    node_timeout_s: float = 60.0
    max_slots: int | None = None
    timeline: Path | None = None
    prefill_rows: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("--n-samples", self.n_samples, 1)
        _at_least("--n-tokens", self.n_tokens, 1)
        if self.sequence_length is not None:
            _at_least("--sequence-length", self.sequence_length, 1)
        _at_least("--temperature", self.temperature, 0)
        _at_least("--top-k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        _at_least("--peer-timeout", self.peer_timeout_s, 0.1)
        _at_least("--node-timeout", self.node_timeout_s, 1)
        if self.max_slots is not None:
            _at_least("--max-slots", self.max_slots, 1)
        _at_least("--prefill-rows", self.prefill_rows, 1)
        if self.prefill_rows > MOST_ROWS:
            raise ConfigError(f"--prefill-rows {self.prefill_rows}: must be at most {MOST_ROWS}")


@dataclass(frozen=True)
class SampleOptions(StarterOptions):
    """The options of `sample.py`: one long sample on this machine alone."""

    nodes_config: Path = SETTINGS_DIR / "standalone.json"
    n_samples: int = 1
    n_tokens: int = 800


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare_model.py`."""

    model: str | None = None
    random: str | None = None
    ckpt_folder: Path = CHECKPOINTS_DIR
    model_name: str | None = None
    n_nodes: int | None = None
    hf_token: str | None = None
    dtype: str | None = None
    quantize: Mode = "none"
    device: str = "cpu"
    nodes_config: Path | None = None
    split: str = "auto"
    seed: int = 10137

    def __post_init__(self) -> None:
        if (self.model is None) == (self.random is None):
            raise ConfigError("say which model: a repo id, a folder, a .gguf file, or --random CONFIG")
        if self.n_nodes is not None:
            _at_least("--n-nodes", self.n_nodes, 1)
            if self.nodes_config is not None:
                raise ConfigError("--n-nodes and --nodes-config both say how many nodes there are: give one of them")
        if self.split != "auto" and self.n_nodes is None and self.nodes_config is None:
            raise ConfigError("--split needs --n-nodes or --nodes-config, which say how many nodes there are")
        _check_quantize(self.quantize)
        if self.quantize != "none" and self.n_nodes is None and self.nodes_config is None:
            raise ConfigError("--quantize needs --n-nodes or --nodes-config: it is the chunks that are quantized")
        if not DEVICE.fullmatch(self.device):
            raise ConfigError(f"--device {self.device}: expected cpu, mps, cuda or cuda:N")
        check_dtype(self.dtype)


def check_dtype(dtype: str | None) -> None:
    """Raise `ConfigError` unless `dtype` is None or one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")


def _check_quantize(mode: str | None) -> None:
    if mode is not None and mode not in MODES:
        raise ConfigError(f"--quantize {mode}: expected one of {', '.join(MODES)}")


def _at_least(flag: str, value: float, least: float) -> None:
    if not least <= value <= MOST:
        raise ConfigError(f"{flag} {value}: must be a number from {least:g} to {MOST:g}")


def defaults_of(options: type) -> dict[str, Any]:
    """Field name -> default, so that the parsers and the dataclasses cannot disagree."""
    return {item.name: item.default for item in fields(options)}
