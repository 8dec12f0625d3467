"""What was said so far, as requests carry it and as a file keeps it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mdi.documents import Fields, is_text, read_json
from mdi.errors import ConfigError
from mdi.files import write_text

FORMAT = "mdi-llm chat 1"
MAX_FILE_BYTES = 16 << 20

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Role
    text: str


@dataclass
class Conversation:
    """A system prompt, and turns of the user and the assistant, one after the other."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def add(self, question: str, answer: str) -> None:
        self.turns += [Turn("user", question), Turn("assistant", answer)]

    def reset(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns.clear()

    def messages(self, question: str) -> list[dict[str, str]]:
        """The messages of a request that asks `question` next."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [{"role": turn.role, "content": turn.text} for turn in self.turns]
        return [*first, *turns, {"role": "user", "content": question}]

    def text(self, question: str) -> str:
        """The same for a model that knows no roles: one text, in which answers go on from questions."""
        parts = [] if self.system is None else [f"{self.system}\n"]
        parts += [turn.text if turn.role == "user" else f"{turn.text}\n" for turn in self.turns]
        return "".join([*parts, question])


def save(conversation: Conversation, path: Path) -> None:
    """Write a conversation as JSON. Raises `StorageError`."""
    turns = [{"role": turn.role, "text": turn.text} for turn in conversation.turns]
    document = {"format": FORMAT, "system": conversation.system, "turns": turns}
    write_text(path, json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def load(path: Path) -> Conversation:
    """Read what `save` wrote. Raises `ConfigError` with the file and what is wrong with it."""
    document = Fields(read_json(path, MAX_FILE_BYTES, ConfigError), str(path), ConfigError)
    document.get("format", lambda value: value == FORMAT, repr(FORMAT))
    system = document.get("system", is_text, "a text", default=None)
    turns = document.get("turns", lambda value: isinstance(value, list) and len(value) % 2 == 0, "a list of pairs")
    return Conversation(system, [_turn(value, f"{path}: turn {i}", i) for i, value in enumerate(turns)])


def _turn(value: object, what: str, index: int) -> Turn:
    fields = Fields(value, what, ConfigError)
    expected = "assistant" if index % 2 else "user"
    role: Role = fields.get("role", lambda role: role == expected, repr(expected))
    return Turn(role, fields.get("text", is_text, "a text"))
