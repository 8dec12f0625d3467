"""The chat itself: takes what is typed, asks, shows, and carries out commands."""

import contextlib
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdi.cli.chat.answer import Answer, Failed, Finished, Piece, Usage
from mdi.cli.chat.conversation import Conversation, load, save
from mdi.cli.chat.display import Display
from mdi.cli.chat.endpoint import Endpoint, NotReady, RequestFailed
from mdi.cli.chat.keyboard import Cleared, InputEnded, InputFailed, Keyboard, Typed
from mdi.config.options import ChatOptions
from mdi.errors import ConfigError, MdiError
from mdi.inbox import Inbox
from mdi.strings import count, did_you_mean, quoted
from mdi.terminal import screen

NO_TEMPLATE = "no_chat_template"  # the server's code for a model that knows no roles
PATIENCE_S = 600.0  # with a server whose ring starts, or is formed anew
_PAUSES_S = (0.2, 10.0)  # the shortest and the longest until it is asked again
CONTINUATION_TOKENS = 200  # of a model that does not end by itself, unless --n-tokens says otherwise


@dataclass(frozen=True)
class Interrupted:
    """Ctrl-C while no line is edited."""


class Quit(Exception):
    """The user has had enough."""


class Chat:
    """One conversation with one model. Everything that happens comes through the inbox, on the main thread."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        options: ChatOptions,
        inbox: Inbox,
        keyboard: Keyboard,
        display: Display,
        *,
        say: Callable[[str], None] = screen.write_line,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """
        Args:
            say: shows a line that is no answer.
            patience_s: for how long a question is asked again while the server is not ready.
        """
        self._patience_s = patience_s
        self._endpoint, self._model, self._options = endpoint, model, options
        self._inbox, self._keyboard, self._display, self._say = inbox, keyboard, display, say
        self._conversation = Conversation(options.system)
        self._knows_roles = True
        self._usages: list[Usage] = []
        self.n_failed = 0  # requests and commands

    def run(self) -> None:
        """Until the input ends, or the user quits. Raises `Stopped` after a signal."""
        self._keyboard.ask()
        while True:
            match self._inbox.get():
                case Typed(text):
                    try:
                        self._take(text)
                    except Quit:
                        return
                    except MdiError as exc:
                        self.n_failed += 1
                        self._say(f"error: {exc}")
                case Cleared():
                    pass
                case InputEnded():
                    return
                case InputFailed(error):
                    raise error
                case _:  # late: of an answer that was stopped, or Ctrl-C where there is none
                    continue
            self._keyboard.ask()

    def _take(self, text: str) -> None:
        if text.startswith("/"):
            name, _, argument = text.strip().partition(" ")
            self._command(name)(self, argument.strip())
        elif text.strip():
            self._ask(text)

    # ---- questions

    def _ask(self, question: str) -> None:
        try:
            self._answer_once_ready(question)
        except RequestFailed as exc:
            if exc.code != NO_TEMPLATE or not self._knows_roles:
                raise
            self._knows_roles = False
            self._say(f"{self._model} has no chat template: it goes on from what you type, as one text")
            self._answer_once_ready(question)

    def _answer_once_ready(self, question: str) -> None:
        """Ask again as long as the server says that it will be ready. Raises `RequestFailed`."""
        deadline_s, is_told = time.monotonic() + self._patience_s, False
        while True:
            try:
                self._answer(question)
                return
            except NotReady as exc:
                if time.monotonic() >= deadline_s:
                    raise
                if not is_told:
                    self._say(f"{exc}: waiting for it")
                is_told, pause_s = True, min(max(_PAUSES_S[0], exc.retry_s), _PAUSES_S[1])
            with contextlib.suppress(queue.Empty):
                self._inbox.wait_for(Interrupted, timeout_s=pause_s)
                self._say("stopped")
                return

    def _answer(self, question: str) -> None:
        """Show the answer, and keep what came of it, whole or not. Raises `RequestFailed`."""
        path, body = self._request(question)
        answer = Answer(self._endpoint, path, body, self._inbox)
        text, note = "", None
        try:
            with self._display.answer() as show:
                while note is None:
                    match self._inbox.get():
                        case Piece(owner, piece) if owner is answer:
                            text += piece
                            show(piece)
                        case Finished(owner, usage, reason) if owner is answer:
                            note = self._remark(usage, reason)
                        case Failed(owner, error) if owner is answer:
                            raise error
                        case Interrupted():
                            note = "stopped"
        finally:
            answer.stop()
            if text:
                self._conversation.add(question, text)
        if note:
            self._say(note)

    def _remark(self, usage: Usage | None, reason: str | None) -> str:
        """What there is to say of a complete answer."""
        lines = []
        if usage is not None:
            self._usages.append(usage)
            if self._options.verbose:
                lines.append(described(usage))
        if reason == "length" and self._knows_roles and self._options.n_tokens is None:
            lines.append("the answer is cut off at the end of the context: /reset begins anew")
        return "\n".join(lines)

    def _request(self, question: str) -> tuple[str, dict[str, Any]]:
        """The path and the body of a request."""
        options = self._options
        chosen = {
            "max_tokens": options.n_tokens or (None if self._knows_roles else CONTINUATION_TOKENS),
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "seed": options.seed,
        }
        body = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        body |= {name: value for name, value in chosen.items() if value is not None}
        if self._knows_roles:
            return "/chat/completions", body | {"messages": self._conversation.messages(question)}
        return "/completions", body | {"prompt": self._conversation.text(question)}

    # ---- commands

    @staticmethod
    def _command(name: str) -> "Callable[[Chat, str], None]":
        if name not in COMMANDS:
            meant = did_you_mean(name, COMMANDS)
            raise ConfigError(f"{quoted(name)} is no command{meant or '; /help lists them'}")
        return COMMANDS[name][1]

    def _help(self, _: str) -> None:
        """Show this."""
        for name, (argument, command) in COMMANDS.items():
            self._say(f"{f'{name} {argument}':14} {command.__doc__}")
        self._say('Alt-Enter, or """ at both ends: several lines. Ctrl-C: stop the answer. Ctrl-D: end.')

    def _reset(self, _: str) -> None:
        """Forget what was said; the system prompt stays."""
        self._conversation.reset()

    def _system(self, text: str) -> None:
        """Set the system prompt; without TEXT, remove it."""
        self._conversation.system = text or None

    def _save(self, name: str) -> None:
        """Write the conversation to FILE."""
        path = _path("/save", name)
        save(self._conversation, path)
        self._say(f"{count(len(self._conversation.turns), 'message')} saved to {path}")

    def _load(self, name: str) -> None:
        """Go on with the conversation in FILE."""
        self._conversation = load(_path("/load", name))
        self._say(f"{count(len(self._conversation.turns), 'message')} loaded")

    def _stats(self, _: str) -> None:
        """Show the tokens of the last answer, and of all."""
        self._say(f"{self._model} at {self._endpoint.url}: {count(len(self._conversation.turns), 'message')}")
        if self._usages:
            self._say(f"last answer: {described(self._usages[-1])}")
            totals = (sum(usage.prompt for usage in self._usages), sum(usage.completion for usage in self._usages))
            self._say(f"all {len(self._usages)}: {totals[0]} prompt tokens, {totals[1]} generated")

    def _quit(self, _: str) -> None:
        """End the chat, as Ctrl-D does."""
        raise Quit


COMMANDS: dict[str, tuple[str, Callable[[Chat, str], None]]] = {
    "/help": ("", Chat._help),
    "/reset": ("", Chat._reset),
    "/system": ("TEXT", Chat._system),
    "/save": ("FILE", Chat._save),
    "/load": ("FILE", Chat._load),
    "/stats": ("", Chat._stats),
    "/quit": ("", Chat._quit),
}


def described(usage: Usage) -> str:
    """`57 prompt tokens (40 cached), 120 generated, first after 0.21 s, 41.5 tokens/s`"""
    first = "" if usage.first_token_s is None else f", first after {usage.first_token_s:.2f} s"
    rate = "" if usage.tokens_per_s is None else f", {usage.tokens_per_s:.1f} tokens/s"
    return f"{usage.prompt} prompt tokens ({usage.cached} cached), {usage.completion} generated{first}{rate}"


def _path(command: str, name: str) -> Path:
    if not name:
        raise ConfigError(f"{command} needs the name of a file")
    return Path(name).expanduser()
