"""How a prompt is formatted for a model, and the sequences that end its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi import litgpt_package
from mdi.documents import read_yaml
from mdi.errors import CheckpointError, ConfigError
from mdi.text.stops import StopSequences
from mdi.text.tokenizer import Tokenizer
from mdi.text.tokenizer_config import special_ids
from mdi.text.worker_client import find_template
from mdi.text.worker_process import TextWorker

MAX_FILE_BYTES = 1 << 16  # of prompt_style.yaml


@dataclass(frozen=True)
class Style:
    """How a prompt is formatted for a model, and the sequences that end its answer."""

    name: str
    apply: Callable[[str], str]
    stops: StopSequences = ()


PLAIN = Style("none", lambda prompt: prompt)


def load_style(
    folder: Path, config_name: str, tokenizer: Tokenizer, worker: TextWorker, override: str | None = None
) -> Style:
    """The style of a model folder, whose model_config.yaml says `name: <config_name>`. `worker` renders its template.

    prompt_style.yaml, which litgpt writes for a model that it trained, else the model's own chat template, else
    litgpt's style for the name, else none: a fine-tune may keep a name and have another template.
    `override` is `none`, `chat-template` or a name known to litgpt. Raises `ConfigError` for an unknown
    override, `CheckpointError` for a damaged folder.
    """
    if override is not None:
        return _named_style(folder, tokenizer, worker, override)
    if (saved := folder / "prompt_style.yaml").is_file():
        return _litgpt_style(_saved_class(saved)(), tokenizer)
    return _template_style(folder, worker) or _style_for_name(config_name, tokenizer) or PLAIN


def stop_sequences(folder: Path, tokenizer: Tokenizer, style: Style) -> StopSequences:
    """Everything that ends a sample: by the style, by the tokenizer and by the model's own configuration."""
    eos = [] if tokenizer.eos_id is None else [(tokenizer.eos_id,)]
    own = [(token_id,) for token_id in special_ids(folder, "eos_token_id")]
    return tuple(dict.fromkeys([*style.stops, *eos, *own]))


def _named_style(folder: Path, tokenizer: Tokenizer, worker: TextWorker, name: str) -> Style:
    if name == "none":
        return PLAIN
    if name == "chat-template":
        style = _template_style(folder, worker)
        if style is None:
            raise ConfigError(f"--prompt-style {name}: {folder} has no chat template")
        return style
    styles = _prompts().prompt_styles
    if name not in styles:
        known = ", ".join(["none", "chat-template", *sorted(styles)])
        raise ConfigError(f"--prompt-style {name}: unknown; choose one of {known}")
    return _litgpt_style(styles[name](), tokenizer)


def _style_for_name(config_name: str, tokenizer: Tokenizer) -> Style | None:
    prompts = _prompts()
    style = prompts.model_name_to_prompt_style(config_name)
    return None if isinstance(style, prompts.Default) else _litgpt_style(style, tokenizer)


def _prompts() -> Any:
    """The module `litgpt.prompts`; imported only where one of its styles is asked for."""
    litgpt_package.register()
    from litgpt import prompts

    return prompts


def _saved_class(path: Path) -> Any:
    """The class of `litgpt.prompts` that a prompt_style.yaml names; nothing else is ever imported."""
    prompts = _prompts()
    content = read_yaml(path, MAX_FILE_BYTES, CheckpointError)
    class_path = content.get("class_path") if isinstance(content, dict) else None
    module, _, name = str(class_path).rpartition(".")
    style_class = getattr(prompts, name, None) if module == prompts.__name__ else None
    if not (isinstance(style_class, type) and issubclass(style_class, prompts.PromptStyle)):
        raise CheckpointError(f"{path}: class_path {class_path!r} is not a prompt style of litgpt.prompts")
    return style_class


class _LitgptView:
    """The part of a tokenizer that litgpt's styles use. A token that the vocabulary lacks is None, not an error."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_id = tokenizer.eos_id
        self.token_to_id = tokenizer.token_id


def _litgpt_style(style: Any, tokenizer: Tokenizer) -> Style:
    stops = (tuple(ids) for ids in style.stop_tokens(_LitgptView(tokenizer)))
    usable = tuple(ids for ids in stops if ids and None not in ids)
    return Style(type(style).__name__, style.apply, usable)


def _template_style(folder: Path, worker: TextWorker) -> Style | None:
    template = find_template(folder, worker)
    if template is None:
        return None
    return Style("chat-template", lambda prompt: template.render([{"role": "user", "content": prompt}]))
