"""The files of adapters: their weights, named as litGPT names them, and what has to be known to use them.

lit_model.pth.lora   two small matrices for each layer
lora.json            their rank and scale, and which model they adapt
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mdi.config.lora import Lora
from mdi.documents import Fields, is_text, misfit, read_json
from mdi.errors import CheckpointError, ConfigError
from mdi.files import write_text
from mdi.formats import DIGEST
from mdi.installation import program_name

ADAPTERS_FILE, FACTS_FILE = "lit_model.pth.lora", "lora.json"
FORMAT_VERSION = 1
TARGETS = ("query", "value")  # what is adapted in each layer, as in the paper and by default in litGPT
_MAX_FACTS_BYTES = 1 << 16


@dataclass(frozen=True)
class AdapterFacts:
    """What `lora.json` says."""

    base: Path  # folder of the model that is adapted
    base_digest: str  # of its weights
    lora: Lora


def is_adapter(name: str) -> bool:
    """Whether a tensor of a model with adapters belongs to one of them."""
    return "lora_" in name


def has_adapters(folder: Path) -> bool:
    """Whether a folder holds adapters in place of a model."""
    return (folder / FACTS_FILE).is_file()


def refuse_adapters(folder: Path) -> None:
    """Raise `ConfigError` where a folder is taken for that of a model, and holds adapters."""
    if has_adapters(folder):
        advice = f"merge them with {program_name('prepare_model')} --merge-lora {folder}"
        raise ConfigError(f"{folder}: holds adapters, not a model: {advice}")


def check_adapters(folder: Path) -> None:
    """Raise `CheckpointError` unless a folder holds adapters."""
    read_facts(folder)
    if not (folder / ADAPTERS_FILE).is_file():
        raise CheckpointError(f"{folder}: no {ADAPTERS_FILE} yet: training writes it after the first validation")


def write_facts(folder: Path, facts: AdapterFacts) -> None:
    """Write `lora.json`. Raises `StorageError`."""
    values = {"format_version": FORMAT_VERSION, "base": str(facts.base), "base_digest": facts.base_digest}
    document = values | {"targets": TARGETS} | asdict(facts.lora)
    write_text(folder / FACTS_FILE, json.dumps(document, indent=2) + "\n")


def read_facts(folder: Path) -> AdapterFacts:
    """What `write_facts` wrote. Raises `CheckpointError` where there is none, or it is damaged."""
    path = folder / FACTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: has no {FACTS_FILE}, so there are no adapters")
    fields = Fields(read_json(path, _MAX_FACTS_BYTES, CheckpointError), str(path), CheckpointError)
    fields.get("format_version", lambda value: value == FORMAT_VERSION, f"{FORMAT_VERSION}")
    fields.get("targets", lambda value: value == list(TARGETS), " and ".join(TARGETS))
    base = fields.get("base", is_text, "a text")
    digest = fields.get("base_digest", _is_digest, "a digest")
    values = {name: fields.get(name, lambda value: value is not None, "a number") for name in ("r", "alpha", "dropout")}
    if problem := misfit(values, Lora):
        raise CheckpointError(f"{path}: damaged: {problem}")
    try:
        return AdapterFacts(Path(base), digest, Lora(**values))
    except ConfigError as exc:
        raise CheckpointError(f"{path}: damaged: {exc}") from exc


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None
