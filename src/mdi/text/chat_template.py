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
from mdi.text.tool_calls import ToolFormat, tool_format

ADVICE = "try --prompt-style none"
MAX_TEMPLATE_BYTES = 4 << 20


class ChatTemplate:
    """A Jinja template that a model brings along, rendered as Hugging Face's library would.

    A template comes with a model, so from anyone: it runs in Jinja's sandbox and can read nothing but its arguments.
    What it takes is not bounded here: see `mdi.text.worker_process`.
    """

    def __init__(
        self, source: str, origin: Path, special_tokens: dict[str, str], tool_source: str | None = None
    ) -> None:
        """
        Args:
            special_tokens: texts by name, such as `bos_token`.
            tool_source: another template, for conversations with tools.

        Raises `CheckpointError` for bad syntax.
        """
        self._origin = origin
        self._special_tokens = special_tokens
        self._template = self._compiled(source)
        self._tool_template = self._template if tool_source is None else self._compiled(tool_source)
        self.tool_format: ToolFormat | None = tool_format(tool_source or source)

    def _compiled(self, source: str) -> Any:
        from jinja2 import TemplateSyntaxError

        origin = self._origin
        try:
            return _template_environment().from_string(source)
        except TemplateSyntaxError as exc:
            raise CheckpointError(f"{origin}: bad chat template, line {exc.lineno}: {exc.message}; {ADVICE}") from exc
        except MemoryError:
            raise
        except Exception as exc:  # Jinja computes constants, and Python compiles what it wrote
            raise CheckpointError(f"{origin}: bad chat template ({one_line(exc)}); {ADVICE}") from exc

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text of a conversation, up to where the model is to answer.

        Messages have a `role` and a `content`, and some have `tool_calls`; `tools` are those of OpenAI's API. Raises
        `CheckpointError` where the template refuses them.
        """
        template = self._tool_template if tools else self._template
        try:
            text: str = template.render(
                messages=list(messages),
                tools=list(tools) or None,  # templates test for none; a missing name would be an error in some
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
    sources = _named_templates(config.get("chat_template"))
    source = sources.get("default", next(iter(sources.values()), None))
    return None if source is None else ChatTemplate(source, path, tokens, sources.get("tool_use"))


def _named_templates(value: object) -> dict[str, str]:
    """`value` is a template, or a list of `{"name", "template"}`."""
    if isinstance(value, str):
        return {"default": value}
    entries = value if isinstance(value, list) else []
    pairs = ((entry.get("name"), entry.get("template")) for entry in entries if isinstance(entry, dict))
    return {name: template for name, template in pairs if isinstance(name, str) and isinstance(template, str)}


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
