"""The command line of `prepare_model.py`."""

from dataclasses import dataclass
from pathlib import Path

from mdi.config.paths import CHECKPOINTS_DIR
from mdi.config.section import at_least, check_device, check_dtype, check_quantize
from mdi.errors import ConfigError
from mdi.formats import Mode


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `prepare_model.py`."""

    model: str | None = None
    quiet: bool = False
    random: str | None = None
    n_embd: int | None = None
    context_length: int | None = None
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
    list_models: bool = False
    remove: str | None = None
    chunks_only: bool = False
    merge_lora: Path | None = None

    def __post_init__(self) -> None:
        given = [self.model is not None, self.random is not None, self.list_models, self.remove is not None]
        if self.merge_lora is not None:
            if any(given[1:]):
                raise ConfigError("--merge-lora: give it alone, or with the folder of the model that is adapted")
        elif given.count(True) != 1:
            raise ConfigError(
                "say which model: a repo id, a short name, a folder, a .gguf file, or --random CONFIG; or --merge-lora"
                " DIR, or --list, or --remove NAME"
            )
        if self.n_nodes is not None:
            at_least("--n-nodes", self.n_nodes, 1)
            if self.nodes_config is not None:
                raise ConfigError("--n-nodes and --nodes-config both say how many nodes there are: give one of them")
        if self.split != "auto" and self.n_nodes is None and self.nodes_config is None:
            raise ConfigError("--split needs --n-nodes or --nodes-config, which say how many nodes there are")
        for flag, value in (("--n-embd", self.n_embd), ("--context-length", self.context_length)):
            if value is not None:
                at_least(flag, value, 1)
                if self.random is None:
                    raise ConfigError(f"{flag} is for --random nanoGPT-7, nanoGPT-9 or nanoGPT-12")
        check_dtype(self.dtype)
        check_quantize(self.quantize)
        if self.chunks_only and self.n_nodes is None and self.nodes_config is None:
            raise ConfigError("--chunks-only needs --n-nodes or --nodes-config, which say how many chunks there are")
        check_device(self.device)
