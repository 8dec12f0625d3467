"""Prompts, from options and files, -> token ids."""

import logging
from itertools import cycle, groupby, islice
from pathlib import Path

from mdi.documents import read_text
from mdi.errors import ConfigError
from mdi.strings import count
from mdi.text.styles import Style
from mdi.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PROMPT_SUFFIXES = (".txt", ".md", ".tex")
MAX_FILE_BYTES = 64 << 20
_FILE_PREFIX = "FILE:"


def load_prompts(spec: str, n_samples: int) -> list[str]:
    """The prompts of `n_samples` samples, from a `--prompt` option.

    `FILE:path` gives one paragraph to each sample, starting over if there are too few, and with a warning if some are
    left; any other text is the prompt of all samples. Raises `ConfigError` for a file that cannot be read or holds no
    text.
    """
    if not spec.startswith(_FILE_PREFIX):
        return [spec] * n_samples
    path = Path(spec.removeprefix(_FILE_PREFIX))
    paragraphs = split_paragraphs(_read_prompt_file(path))
    if not paragraphs:
        raise ConfigError(f"{path}: the prompt file holds no text")
    if len(paragraphs) > n_samples:
        samples = count(n_samples, "sample")
        log.warning("%s: %s for %s: the rest is not used", path, count(len(paragraphs), "paragraph"), samples)
    return list(islice(cycle(paragraphs), n_samples))


def split_paragraphs(text: str) -> list[str]:
    """The runs of lines between blank lines; lines of only whitespace are blank."""
    runs = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return ["\n".join(lines).rstrip() for has_text, lines in runs if has_text]


def _read_prompt_file(path: Path) -> str:
    if path.suffix.lower() not in PROMPT_SUFFIXES:
        raise ConfigError(f"{path}: a prompt file must end in {', '.join(PROMPT_SUFFIXES)}")
    try:
        expanded = path.expanduser()
    except RuntimeError as exc:  # `~` of an unknown user
        raise ConfigError(f"{path}: not a usable path ({exc})") from exc
    return read_text(expanded, MAX_FILE_BYTES, ConfigError)


def encode_prompt(tokenizer: Tokenizer, style: Style, prompt: str) -> list[int]:
    """The ids a sample starts from, at least one.

    A style applies to an empty prompt too: the model sees an empty user turn. If there are no tokens after that, the
    model's BOS is used. Raises `ConfigError` if it has none, or if the prompt is not valid UTF-8.
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
