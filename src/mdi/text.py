"""Prompts and styles -> token ids; token ids -> text as they come; stop sequences."""

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle, groupby, islice
from pathlib import Path
from typing import Any

from mdi.chat_template import load_chat_template
from mdi.errors import CheckpointError, ConfigError
from mdi.stops import StopSequences, holds_back, match_stop
from mdi.tokenizer import Tokenizer, generation_ids

PROMPT_SUFFIXES = (".txt", ".md", ".tex")
_FILE_PREFIX = "FILE:"

# --- prompts ---


def load_prompts(spec: str, n_samples: int) -> list[str]:
    """The prompts of `n_samples` samples, from a `--prompt` option.

    `FILE:path` gives one paragraph to each sample, again from the first where there are too few; any other
    text is the prompt of all. Raises `ConfigError` for a file that cannot be read or holds no text.
    """
    if not spec.startswith(_FILE_PREFIX):
        return [spec] * n_samples
    path = Path(spec.removeprefix(_FILE_PREFIX))
    paragraphs = split_paragraphs(_read_prompt_file(path))
    if not paragraphs:
        raise ConfigError(f"{path}: the prompt file holds no text")
    return list(islice(cycle(paragraphs), n_samples))


def split_paragraphs(text: str) -> list[str]:
    """The runs of lines between blank lines; lines of nothing but white space are blank."""
    runs = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return ["\n".join(lines).rstrip() for has_text, lines in runs if has_text]


def _read_prompt_file(path: Path) -> str:
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise ConfigError(f"{path}: a prompt file must end in {', '.join(PROMPT_SUFFIXES)}")
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"{path}: the prompt file cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: the prompt file is not UTF-8 text (byte {exc.start})") from exc
    except (ValueError, RuntimeError) as exc:  # a NUL in the path; a home folder that nobody has
        raise ConfigError(f"{path}: not a usable path ({exc})") from exc


def encode_prompt(tokenizer: Tokenizer, style: "Style", prompt: str) -> list[int]:
    """The ids a sample starts from, at least one.

    A style is applied to an empty prompt too: the model sees a user who said nothing. What has no tokens
    after that becomes the model's BOS. Raises `ConfigError` where there is none, or the text is broken.
    """
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ConfigError(f"the prompt is not valid UTF-8 text (character {exc.start})") from exc
    ids = tokenizer.encode(style.apply(prompt))
    if ids:
        return ids
    if tokenizer.bos_id is None:
        raise ConfigError("the prompt is empty, and this model has no token to begin a text with")
    return [tokenizer.bos_id]


# --- styles ---


@dataclass(frozen=True)
class Style:
    """How a prompt is dressed for the model, and the sequences that end its answer."""

    name: str
    apply: Callable[[str], str]
    stops: StopSequences = ()


PLAIN = Style("none", lambda prompt: prompt)


def load_style(folder: Path, config_name: str, tokenizer: Tokenizer, override: str | None = None) -> Style:
    """The style of a model folder, whose model_config.yaml says `name: <config_name>`.

    prompt_style.yaml, else litgpt's style for the name, else the model's chat template, else none.
    `override` is `none`, `chat-template` or a name known to litgpt. Raises `ConfigError` for an unknown
    override, `CheckpointError` for a damaged folder.
    """
    if override is not None:
        return _named_style(folder, tokenizer, override)
    if (saved := folder / "prompt_style.yaml").is_file():
        return _litgpt_style(_saved_class(saved)(), tokenizer)
    return _style_for_name(config_name, tokenizer) or _template_style(folder) or PLAIN


def stop_sequences(folder: Path, tokenizer: Tokenizer, style: Style) -> StopSequences:
    """Everything that ends a sample: by the style, by the tokenizer and by generation_config.json."""
    eos = [] if tokenizer.eos_id is None else [(tokenizer.eos_id,)]
    generation = [(token_id,) for token_id in generation_ids(folder, "eos_token_id")]
    return tuple(dict.fromkeys([*style.stops, *eos, *generation]))


def _named_style(folder: Path, tokenizer: Tokenizer, name: str) -> Style:
    if name == "none":
        return PLAIN
    if name == "chat-template":
        style = _template_style(folder)
        if style is None:
            raise ConfigError(f"--prompt-style {name}: {folder} has no chat template")
        return style
    # 3 s, and so only where a style of litgpt is really asked for.
    from litgpt.prompts import prompt_styles

    if name not in prompt_styles:
        known = ", ".join(["none", "chat-template", *sorted(prompt_styles)])
        raise ConfigError(f"--prompt-style {name}: unknown; choose one of {known}")
    return _litgpt_style(prompt_styles[name](), tokenizer)


def _style_for_name(config_name: str, tokenizer: Tokenizer) -> Style | None:
    from litgpt.prompts import Default, model_name_to_prompt_style

    style = model_name_to_prompt_style(config_name)
    return None if isinstance(style, Default) else _litgpt_style(style, tokenizer)


def _saved_class(path: Path) -> Any:
    """The class of `litgpt.prompts` that a prompt_style.yaml names; nothing else is ever imported."""
    import yaml
    from litgpt import prompts

    try:
        content = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise CheckpointError(f"{path}: cannot be read ({' '.join(str(exc).split())})") from exc
    class_path = content.get("class_path") if isinstance(content, dict) else None
    module, _, name = str(class_path).rpartition(".")
    style_class = getattr(prompts, name, None) if module == prompts.__name__ else None
    if not (isinstance(style_class, type) and issubclass(style_class, prompts.PromptStyle)):
        raise CheckpointError(f"{path}: class_path {class_path!r} is not a prompt style of litgpt.prompts")
    return style_class


class _LitgptView:
    """What litgpt's styles ask of a tokenizer. A token that the vocabulary lacks is None, not an error."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_id = tokenizer.eos_id
        self.token_to_id = tokenizer.token_id


def _litgpt_style(style: Any, tokenizer: Tokenizer) -> Style:
    stops = (tuple(ids) for ids in style.stop_tokens(_LitgptView(tokenizer)))
    usable = tuple(ids for ids in stops if ids and None not in ids)
    return Style(type(style).__name__, style.apply, usable)


def _template_style(folder: Path) -> Style | None:
    template = load_chat_template(folder)
    if template is None:
        return None
    return Style("chat-template", lambda prompt: template.render([{"role": "user", "content": prompt}]))


# --- text as it grows ---


class TextStream:
    """The text of one sample, token by token.

    What is shown is complete UTF-8 and cannot turn out to be part of a stop sequence. All that was shown,
    joined, is `tokenizer.decode(kept, continues=continues)`, where `kept` lacks the stop sequence.
    """

    def __init__(self, tokenizer: Tokenizer, stops: StopSequences, *, continues: bool = True) -> None:
        """`continues` says that the sample goes on from a text, so that a leading space belongs to it."""
        self._tokenizer = tokenizer
        self._stops = stops
        self._held: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_leading_space and not continues
        self._is_finished = False

    def push(self, token_id: int) -> str:
        """Take the next token; return the text that can be shown now, often empty."""
        assert not self._is_finished, "push after finish"
        self._held.append(token_id)
        n_held = max(match_stop(self._held, self._stops), holds_back(self._held, self._stops))
        n_free = len(self._held) - n_held
        free, self._held = self._held[:n_free], self._held[n_free:]
        return self._text(free)

    def finish(self, *, stopped: bool) -> str:
        """The rest of the text. `stopped` says that the tokens end with a stop sequence, which is dropped."""
        assert not self._is_finished, "finish called twice"
        self._is_finished = True
        n_kept = len(self._held) - (match_stop(self._held, self._stops) if stopped else 0)
        return self._text(self._held[:n_kept], final=True)

    def _text(self, ids: Iterable[int], *, final: bool = False) -> str:
        text = self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)), final)
        if text and self._drop_space:
            self._drop_space = False
            return text.removeprefix(" ")
        return text
