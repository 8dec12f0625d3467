"""The chat template that a model brings along: a conversation -> the text the model was trained on."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mdi.documents import read_text
from mdi.errors import CheckpointError
from mdi.strings import one_line
from mdi.text.tokenizer_config import read_tokenizer_config, token_text

ADVICE = "try --prompt-style none"
MAX_TEMPLATE_BYTES = 4 << 20


class ChatTemplate:
    """A Jinja template that a model brings along, rendered as Hugging Face's library would.

    A template comes with a model, so from anyone: it runs in Jinja's sandbox and can read nothing but its arguments.
    What it takes is not bounded here: see `mdi.text.worker_process`.
    """

    def __init__(self, source: str, origin: Path, special_tokens: dict[str, str]) -> None:
        """`special_tokens` are texts by name, such as `bos_token`. Raises `CheckpointError` for bad syntax."""
        from jinja2 import TemplateSyntaxError

        self._origin = origin
        self._special_tokens = special_tokens
        try:
            self._template = _template_environment().from_string(source)
        except TemplateSyntaxError as exc:
            raise CheckpointError(f"{origin}: bad chat template, line {exc.lineno}: {exc.message}; {ADVICE}") from exc
        except MemoryError:
            raise
        except Exception as exc:  # Jinja computes constants, and Python compiles what it wrote
            raise CheckpointError(f"{origin}: bad chat template ({one_line(exc)}); {ADVICE}") from exc

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a conversation, up to where the model is to answer.

        Messages have a `role` and a `content`. Raises `CheckpointError` where the template refuses them.
        """
        try:
            text: str = self._template.render(
                messages=list(messages),
                tools=None,  # templates test for none; a missing name would be an error in some
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
            return text
        except MemoryError:
            raise
        except Exception as exc:  # a template is a program, and can raise anything
            raise CheckpointError(f"{self._origin}: the chat template failed ({one_line(exc)}); {ADVICE}") from exc


def template_file(folder: Path) -> Path:
    """Where the chat template of a model folder is, if it has one."""
    path = folder / "chat_template.jinja"
    return path if path.is_file() else folder / "tokenizer_config.json"


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """chat_template.jinja, else the `chat_template` of tokenizer_config.json, else None."""
    config = read_tokenizer_config(folder)
    tokens = {key: text for key in config if key.endswith("_token") and (text := token_text(config[key])) is not None}
    path = template_file(folder)
    if path.suffix == ".jinja":
        return ChatTemplate(read_text(path, MAX_TEMPLATE_BYTES, CheckpointError), path, tokens)
    source = _default_template(config.get("chat_template"))
    return None if source is None else ChatTemplate(source, path, tokens)


def _default_template(value: object) -> str | None:
    """`value` is a template, or a list of `{"name", "template"}` of which the default one is meant."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    entries = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    named = {entry["name"]: entry.get("template") for entry in entries}
    template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def _template_environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}...{% endgeneration %}` marks what a model was trained on: just its content."""

        tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

        def parse(self, parser: Any) -> nodes.Node:
            line: int = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as in Hugging Face's library: unlike Jinja's it has no escapes for HTML, and these arguments."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
