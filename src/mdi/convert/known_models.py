"""Names of models as people type them -> repos on the Hugging Face hub, and GGUF files in these."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mdi.convert.gguf.parts import part_names, without_part
from mdi.errors import CheckpointError

_MAX_NAMED = 8  # files that an error lists
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quantization>[\w.-]+)|/(?P<file>[\w./ -]+\.gguf))?", re.ASCII)


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name."""

    repo_id: str
    n_bytes: float  # of its weights, as published
    licence: str  # a gated model's has to be accepted on its page first


KNOWN_MODELS = {
    "smollm2-135m": KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct", 0.27e9, "Apache-2.0"),
    "smollm2-360m": KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", 0.72e9, "Apache-2.0"),
    "smollm2": KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", 3.4e9, "Apache-2.0"),
    "tinyllama": KnownModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 2.2e9, "Apache-2.0"),
    "qwen2.5-0.5b": KnownModel("Qwen/Qwen2.5-0.5B-Instruct", 1.0e9, "Apache-2.0"),
    "qwen2.5-1.5b": KnownModel("Qwen/Qwen2.5-1.5B-Instruct", 3.1e9, "Apache-2.0"),
    "qwen2.5-7b": KnownModel("Qwen/Qwen2.5-7B-Instruct", 15.2e9, "Apache-2.0"),
    "llama3.2-1b": KnownModel("meta-llama/Llama-3.2-1B-Instruct", 2.5e9, "Llama 3.2, gated"),
    "llama3.2-3b": KnownModel("meta-llama/Llama-3.2-3B-Instruct", 6.4e9, "Llama 3.2, gated"),
    "llama3-8b": KnownModel("meta-llama/Meta-Llama-3-8B-Instruct", 16.1e9, "Llama 3, gated"),
    "gemma-2b": KnownModel("google/gemma-2b-it", 5.0e9, "Gemma, gated"),
    "gemma2-2b": KnownModel("google/gemma-2-2b-it", 5.2e9, "Gemma, gated"),
    "phi-3-mini": KnownModel("microsoft/Phi-3-mini-4k-instruct", 7.6e9, "MIT"),
    "mistral-7b": KnownModel("mistralai/Mistral-7B-Instruct-v0.3", 14.5e9, "Apache-2.0"),
}


# Older than organizations on the hub, which still knows them by these names too.
_FORMER_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}


@dataclass(frozen=True)
class HubName:
    """`org/name`, and of a repo of GGUF files the quantization or the file: `org/name:Q4_K_M`, `org/name/file.gguf`."""

    repo_id: str
    gguf: str | None = None

    def __str__(self) -> str:
        if self.gguf is None:
            return self.repo_id
        return f"{self.repo_id}{'/' if self.gguf.endswith('.gguf') else ':'}{self.gguf}"

    @property
    def model_name(self) -> str:
        """What the prepared model is called."""
        return self.repo_id if self.gguf is None else re.sub("[-_]gguf$", "", self.repo_id, flags=re.IGNORECASE)


def parse_hub_name(text: str) -> HubName | None:
    """What on the hub is meant by `text`, a short name among others; None where it cannot be meant for the hub."""
    if (known := KNOWN_MODELS.get(text.lower())) is not None:
        return HubName(known.repo_id)
    if text in _FORMER_NAMES:
        return HubName(_FORMER_NAMES[text])
    match = _HUB_NAME.fullmatch(text)
    if match is None or text.startswith("."):
        return None
    gguf = match["quantization"] or match["file"]
    return None if gguf is None and text.endswith(".gguf") else HubName(match["repo"], gguf)


def choose_gguf(name: HubName, files: Iterable[str]) -> list[str]:
    """The files of a repo that are meant: one, or all parts of a model in several, the first one first.

    Raises `CheckpointError` where there is none, or more than one model.
    """
    assert name.gguf is not None
    models = sorted(file for file in files if file.endswith(".gguf") and _is_model(file))
    named = name.gguf.endswith(".gguf")
    found = [file for file in models if (file == name.gguf if named else _has_quantization(file, name.gguf))]
    wholes = {str(PurePosixPath(file).with_name(without_part(PurePosixPath(file).name))) for file in found}
    if len(wholes) != 1:
        problem = f"has no {name.gguf}" if not wholes else f"has {len(wholes)} models in {name.gguf}"
        there = ", ".join(models[:_MAX_NAMED]) + (", ..." if len(models) > _MAX_NAMED else "")
        raise CheckpointError(f"{name.repo_id} {problem}; its GGUF files: {there or 'none'}")
    first = PurePosixPath(found[0])
    parts = [str(first.with_name(part)) for part in part_names(first.name)]
    if missing := set(parts) - set(models):
        raise CheckpointError(f"{name.repo_id} lacks {len(missing)} of {len(parts)} parts: {min(missing)}")
    return parts


def _is_model(file: str) -> bool:
    """Whether a GGUF file may be a model's, by its path: no image projector, and inside the folder it is fetched to."""
    path = PurePosixPath(file)
    return "mmproj" not in path.name.lower() and not path.is_absolute() and ".." not in path.parts


def _has_quantization(file: str, quantization: str) -> bool:
    """Whether a file's name says that it has a quantization: not `Q4_K` for `Q4_K_M`, nor `F16` for `BF16`."""
    return re.search(rf"(^|[-._/]){re.escape(quantization)}(?=[-./])", file, re.IGNORECASE) is not None
