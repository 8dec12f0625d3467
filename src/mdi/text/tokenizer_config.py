"""The configuration files beside a vocabulary: special tokens by their texts, and by their ids."""

import logging
import re
from pathlib import Path
from typing import Any

from mdi.documents import Fields, parse_json, read_document, read_json
from mdi.errors import CheckpointError
from mdi.strings import quoted

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 << 20
MAX_IDS = 1000  # known models have six at most


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the tokens of special_tokens_map.json that it does not name.

    Raises `CheckpointError` if one of them is damaged.
    """
    return _read_object(folder / "special_tokens_map.json") | _read_object(folder / "tokenizer_config.json")


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object, without what is null in it; empty where there is no such file."""
    if not path.is_file():
        return {}
    config = read_json(path, MAX_FILE_BYTES, CheckpointError, distinct=False)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: damaged: an object is expected, not {quoted(config)}")
    return {key: value for key, value in config.items() if value is not None}


def token_text(value: object) -> str | None:
    """A token as configuration files write it: a string, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def special_ids(folder: Path, key: str) -> tuple[int, ...]:
    """The token ids under `key` of generation_config.json, else of config.json, as transformers looks for them.

    They are written there as a number or as a list; in a multimodal model's config.json with the text model's numbers.
    A file that cannot be parsed is ignored with a warning in the log.
    """
    return _ids_in(folder / "generation_config.json", key) or _ids_in(folder / "config.json", key)


def _ids_in(path: Path, key: str) -> tuple[int, ...]:
    if not path.is_file():
        return ()
    data, what = read_document(path, MAX_FILE_BYTES, CheckpointError), str(path)
    try:
        document = parse_json(data, what, CheckpointError, distinct=False, lenient=_with_commas)
        fields = Fields(document, what, CheckpointError)
        text = fields.get("text_config", lambda value: isinstance(value, dict), "an object", {})
        fields = Fields(text, what, CheckpointError) if text.get(key) is not None else fields
        value = fields.get(key, lambda value: isinstance(value, int | list), "a token id or a list of them", [])
    except CheckpointError as exc:
        log.warning("%s; it is ignored", exc)
        return ()
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_IDS:  # each is compared with every token that is generated
        log.warning("%s is ignored: %d ids under %s", path, len(values), key)
        return ()
    ids = tuple(item for item in values if type(item) is int and item >= 0)
    if len(ids) < len(values):
        log.warning("%s: %s is %s; what is no token id is ignored", path, key, quoted(value))
    return ids


def _with_commas(text: str) -> str:
    """JSON with commas that were missing at line ends, and without those left over before a bracket.

    Llama 3.2 was published with such a generation_config.json.
    """
    text = re.sub(r",(?=\s*[}\]])", "", text)
    return re.sub(r'(?<=[\w"}\]])(?=[^\S\n]*\n\s*")', ",", text)
