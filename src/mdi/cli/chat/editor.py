"""Messages from a terminal, with editing and a history, by prompt_toolkit."""

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from mdi.cli.chat.keyboard import Cleared, InputEnded, Typed, is_open, read_in_thread, unquoted
from mdi.inbox import Inbox

PROMPT, CONTINUED = "> ", ". "
CLOSE_TIMEOUT_S = 1.0


class Editor:
    """A `Keyboard`: Enter sends; Alt-Enter, and newlines that are pasted, stay in the message."""

    def __init__(self, inbox: Inbox, commands: Sequence[str], history_file: Path | None) -> None:
        self._inbox = inbox
        self._thread: threading.Thread | None = None
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            prompt_continuation=CONTINUED,
            multiline=True,
            key_bindings=_bindings(),
            history=_history(history_file),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
        )

    def ask(self) -> None:
        # In a thread other than the main one, prompt_toolkit leaves signals alone; else it would take them from us.
        self._thread = read_in_thread(self._read, self._inbox)

    def close(self) -> None:
        """End a prompt that is shown: prompt_toolkit then leaves the terminal as it was."""
        app = self._session.app
        if (loop := app.loop) is not None and app.is_running:
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(lambda: app.exit(exception=EOFError))
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    def _read(self) -> Typed | Cleared | InputEnded:
        try:
            with patch_stdout(raw=True):  # lines of a log go above the prompt
                text = self._session.prompt()
        except KeyboardInterrupt:
            return Cleared()
        except EOFError:  # Ctrl-D
            return InputEnded()
        return Typed(unquoted(text.encode(errors="replace").decode()))  # bytes that are no text came as surrogates


def _bindings() -> KeyBindings:
    bindings = KeyBindings()
    bindings.add("enter")(_send)
    bindings.add("escape", "enter")(_go_on)
    return bindings


def _send(event: KeyPressEvent) -> None:
    if is_open(event.current_buffer.text):
        _go_on(event)
    else:
        event.current_buffer.validate_and_handle()


def _go_on(event: KeyPressEvent) -> None:
    event.current_buffer.insert_text("\n")


def _history(path: Path | None) -> History:
    """Kept in a file that nobody else may read; for this chat alone where there can be none."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
