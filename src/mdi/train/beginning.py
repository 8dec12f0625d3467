"""What a run of training begins with: a shape, a prepared model, or another run."""

from dataclasses import dataclass, replace
from pathlib import Path

from mdi.checkpoint.adapters import has_adapters, read_facts
from mdi.checkpoint.config import CONFIG_FILE, load_config
from mdi.checkpoint.folder import find_folder
from mdi.checkpoint.weights import whole_models
from mdi.config.lora import Lora
from mdi.config.training_options import TrainOptions
from mdi.convert.random import named_config
from mdi.errors import ConfigError
from mdi.files import read_bytes
from mdi.model.architecture import ModelConfig
from mdi.text.vocabulary import find_vocabulary
from mdi.train.checkpoints import STATE_FILE, State, read_state
from mdi.train.dataset import DatasetInfo


@dataclass(frozen=True)
class Beginning:
    """What there is before the first step."""

    config: ModelConfig
    texts: Path  # the folder of the tokenizer
    base: Path | None = None  # the prepared model whose weights are trained or adapted, if any
    base_digest: str = ""  # what its weights have to be: those that the resumed adapters were trained for
    lora: Lora | None = None  # of the adapters that are trained in place of the weights
    state: State | None = None  # of the run that goes on


def find_beginning(options: TrainOptions, folder: Path, dataset: Path, info: DatasetInfo) -> Beginning:
    """What the options name. Raises `ConfigError` where that is not possible, `CheckpointError` for damaged files."""
    if options.init == "resume":
        return _resumed(options, folder, dataset)
    _refuse_to_replace(folder)
    if options.init == "scratch":
        return Beginning(_shape(options, folder, info), dataset)
    base = find_folder(Path(options.model or ""))
    _check_tokenizer(base, dataset)
    return Beginning(load_config(base), base, base, lora=options.lora)


def _resumed(options: TrainOptions, folder: Path, dataset: Path) -> Beginning:
    state = read_state(folder)
    if not has_adapters(folder):
        if options.lora is not None:
            raise ConfigError(f"--lora: the training in {folder} is not one of adapters: leave the flag out")
        _check_tokenizer(folder, dataset)
        return Beginning(load_config(folder), folder, state=state)
    facts = read_facts(folder)
    if options.lora not in (None, facts.lora):
        raise ConfigError(f"--lora: the adapters in {folder} are others: leave the flag out")
    base = facts.base if options.model is None else find_folder(Path(options.model))
    _check_tokenizer(base, dataset)
    return Beginning(load_config(base), base, base, facts.base_digest, facts.lora, state)


def _refuse_to_replace(folder: Path) -> None:
    """Raise `ConfigError` where a new run would replace another one, or a model."""
    if (folder / STATE_FILE).is_file():
        raise ConfigError(f"--ckpt {folder}: holds a training: go on by --init resume, or choose another folder")
    if whole_models(folder):
        raise ConfigError(
            f"--ckpt {folder}: holds a model, which training would replace: choose another folder; to train the model"
            " further, name it by --model, with --init finetune"
        )


def _shape(options: TrainOptions, folder: Path, info: DatasetInfo) -> ModelConfig:
    """A named shape with the vocabulary of the data, or what `folder` has."""
    if options.model is not None:
        config = named_config(options.model, flag="--model")
        sizes = {"vocab_size": info.vocab_size, "padded_vocab_size": info.vocab_size}
        return replace(config, **sizes, block_size=options.context or config.block_size)
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError("--model: say which shape to train, such as nanoGPT-7, gpt2 or pythia-14m")
    return load_config(folder)


def _check_tokenizer(base: Path, dataset: Path) -> None:
    """Raise `ConfigError` where other tokens than the model's would be taken for them."""
    own, other = find_vocabulary(base), find_vocabulary(dataset)
    if own.name != other.name or read_bytes(own) != read_bytes(other):
        raise ConfigError(
            f"--dataset {dataset}: its tokens are not those of {base}: prepare the data with --tokenizer {base}"
        )
