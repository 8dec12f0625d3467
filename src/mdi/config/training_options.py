"""The command lines of `prepare_data.py` and `train.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mdi.config.bounds import Interval
from mdi.config.lora import Lora
from mdi.config.options import SeedOption
from mdi.config.section import at_least, check_device, check_dtype, flag_of
from mdi.errors import ConfigError

TOKENIZERS = ("character", "bpe", "gpt2")  # of `prepare_data.py`, which also takes the folder of a model
INITS = ("scratch", "resume", "hf", "finetune")
STRATEGIES = ("auto", "ddp", "fsdp")
_COUNTS = (
    "batch_size",
    "context",
    "max_iters",
    "patience",
    "ckpt_interval",
    "log_interval",
    "grad_acc_steps",
    "devices",
    "eval_iters",
)  # fields of `TrainOptions` that are at least 1
_SETTINGS = (
    "seed",
    "batch_size",
    "context",
    "max_iters",
    "grad_acc_steps",
    "lr",
    "warmup_iters",
    "weight_decay",
    "grad_clip",
)  # those that decide the course of a run, apart from model and data
MIN_BYTE_PAIRS, MAX_BYTE_PAIRS = 257, 1 << 20  # tokens of a byte-pair vocabulary: each byte, and the end of a text


@dataclass(frozen=True)
class PrepareDataOptions:
    """The options of `prepare_data.py`."""

    data: Path | None = None
    quiet: bool = False
    tokenizer: str = "character"
    vocab_size: int | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.data is None:
            raise ConfigError("say which texts: a .txt or .md file, or a folder of them")
        if self.tokenizer not in TOKENIZERS and not Path(self.tokenizer).is_dir():
            raise ConfigError(f"--tokenizer {self.tokenizer}: neither {', '.join(TOKENIZERS)} nor a folder")
        if self.vocab_size is None:
            return
        if self.tokenizer != "bpe":
            raise ConfigError("--vocab-size is for --tokenizer bpe: others have the size that they have")
        Interval(MIN_BYTE_PAIRS, MAX_BYTE_PAIRS).check("--vocab-size", self.vocab_size)


@dataclass(frozen=True)
class TrainOptions(SeedOption):
    """The options of `train.py`."""

    quiet: bool = False
    ckpt: Path | None = None
    dataset: Path | None = None
    init: str = "scratch"
    model: str | None = None
    lora: Lora | None = None
    batch_size: int = 12
    context: int | None = None
    max_iters: int = 5000
    patience: int | None = None
    ckpt_interval: int = 250
    log_interval: int = 10
    grad_acc_steps: int = 1
    always_update: bool = False
    force_old: bool = False
    compile: bool = False
    device: str | None = None
    devices: int = 1
    strategy: str = "auto"
    dtype: str | None = None
    lr: float = 6e-4
    warmup_iters: int = 100
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_iters: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is None:
            raise ConfigError("--dataset: say which tokens to train on, a folder that prepare_data.py made")
        if self.ckpt is None:
            raise ConfigError("--ckpt: say which folder the model is to be in")
        if self.init not in INITS:
            raise ConfigError(f"--init {self.init}: expected one of {', '.join(INITS)}")
        if self.init in ("hf", "finetune") and self.model is None:
            raise ConfigError(f"--init {self.init} needs --model, the folder of a prepared model")
        if self.init == "scratch" and self.lora is not None:
            raise ConfigError("--lora adapts a model that is there: give --init finetune and --model")
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"--strategy {self.strategy}: expected one of {', '.join(STRATEGIES)}")
        check_dtype(self.dtype)
        self._check_devices()
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None:
                at_least("--context-length" if name == "context" else flag_of(name), value, 1)
        at_least("--warmup-iters", self.warmup_iters, 0)
        at_least("--weight-decay", self.weight_decay, 0)
        for name in ("lr", "grad_clip"):
            Interval(0, excludes_low=True).check(flag_of(name), getattr(self, name))

    def _check_devices(self) -> None:
        check_device(self.device)
        if self.devices > 1 and ":" in (self.device or ""):
            raise ConfigError(f"--devices {self.devices}: --device {self.device} is one device; leave its number out")
        if self.strategy != "fsdp":
            return
        if self.devices == 1:
            raise ConfigError("--strategy fsdp: gives each device a part of the model: say how many, by --devices")
        if self.dtype == "float16":
            raise ConfigError("--strategy fsdp: --dtype is float32 or bfloat16: Fabric does not scale losses with it")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the course of a run, apart from model and data: what `-F` takes from a checkpoint."""
        return {name: getattr(self, name) for name in _SETTINGS}

    def with_settings(self, values: Mapping[str, Any]) -> "TrainOptions":
        """These options with settings of an earlier run. Raises `ConfigError` for values that are not allowed."""
        return replace(self, **{name: values[name] for name in _SETTINGS if name in values})
