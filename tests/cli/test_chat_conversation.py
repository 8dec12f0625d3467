"""A conversation as requests carry it, and as a file keeps it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdi.cli.chat.conversation import FORMAT, Conversation, Turn, load, save
from mdi.errors import ConfigError, StorageError

TURNS = [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hé\n"}]
DOCUMENT: dict[str, Any] = {"format": FORMAT, "system": "Be brief.", "turns": TURNS}


def test_a_request_has_the_whole_conversation() -> None:
    conversation = Conversation("Be brief.", [Turn("user", "Hi"), Turn("assistant", "Hello")])
    assert conversation.messages("And?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
    assert Conversation().messages("Hi") == [{"role": "user", "content": "Hi"}]


def test_for_a_model_without_roles_it_is_one_text() -> None:
    conversation = Conversation("A story.", [Turn("user", "Once"), Turn("assistant", " upon a time.")])
    assert conversation.text("Then") == "A story.\nOnce upon a time.\nThen"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    conversation = Conversation("Be brief.", [Turn("user", "Hi"), Turn("assistant", "Hé\n")])
    save(conversation, path)
    assert load(path) == conversation
    assert json.loads(path.read_text(encoding="utf-8")) == DOCUMENT


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": "mdi-llm chat 2"}, "format is 'mdi-llm chat 2', not 'mdi-llm chat 1'"),
        ({"system": 3}, "system is 3, not a text"),
        ({"turns": TURNS[:1]}, "not a list of pairs"),
        ({"turns": [TURNS[1], TURNS[0]]}, "turn 0: role is 'assistant', not 'user'"),
        ({"turns": [TURNS[0], "Hello"]}, "turn 1: an object is expected"),
        ({"turns": [TURNS[0], {"role": "assistant"}]}, "turn 1: lacks text"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(DOCUMENT | changes))
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert str(refused.value).startswith(str(path)) and problem in str(refused.value)


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(no_folder: Path) -> None:
    with pytest.raises(StorageError):
        save(Conversation(), no_folder / "chat.json")
