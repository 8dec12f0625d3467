"""A chat composed: the server, the terminal or pipe, the conversation; and their end."""

import contextlib
import os
import sys

from mdi.cli.chat.display import Display, Plain
from mdi.cli.chat.endpoint import Endpoint, NoAnswer, RequestFailed
from mdi.cli.chat.keyboard import Keyboard, Pipe
from mdi.cli.chat.own_server import OwnServer
from mdi.cli.chat.session import COMMANDS, Chat, Interrupted
from mdi.cli.signals import Signals
from mdi.config.options import ChatOptions
from mdi.config.paths import chat_history_file
from mdi.errors import ConfigError
from mdi.inbox import Inbox
from mdi.installation import program_name
from mdi.terminal import screen


def run_chat(options: ChatOptions, url: str, key: str | None, signals: Signals) -> int:
    """Chat until the user ends it; the number of requests and commands that failed.

    Raises `MdiError` where there is no server to begin with.
    """
    inbox = Inbox()
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.passed_to(inbox.interrupt))
        if options.starts_server:
            server = stack.enter_context(OwnServer(options, inbox))
            url, key = server.start(), server.key
        endpoint = Endpoint(url, key)
        stack.callback(endpoint.close)
        model = _model(endpoint, options)
        keyboard = _keyboard(inbox)
        stack.callback(keyboard.close)
        chat = Chat(endpoint, model, options, inbox, keyboard, _display())
        # Until here Ctrl-C ended the program.
        stack.enter_context(signals.interrupts_passed_to(lambda: inbox.post(Interrupted())))
        if sys.stdin.isatty():
            screen.write_line(f"{model} at {url}; /help tells what can be typed, Ctrl-D ends")
        chat.run()
    return chat.n_failed


def _model(endpoint: Endpoint, options: ChatOptions) -> str:
    """The model that is meant."""
    try:
        models = endpoint.models()
    except NoAnswer as exc:
        starter = program_name("starter")
        advice = f"start one ({starter} --serve), name it by --url, or give --ckpt to chat with a model of yours"
        raise RequestFailed(f"{exc}: {advice}") from exc
    if options.model is None:
        if not models:
            raise RequestFailed(f"{endpoint.url} has no model")
        return models[0]
    if options.model not in models:
        raise ConfigError(f"--model {options.model}: {endpoint.url} has {', '.join(models) or 'no model'}")
    return options.model


def _keyboard(inbox: Inbox) -> Keyboard:
    if sys.stdin.isatty() and sys.stdout.isatty():
        from mdi.cli.chat.editor import Editor

        return Editor(inbox, list(COMMANDS), chat_history_file())
    return Pipe(inbox)


def _display() -> Display:
    if not sys.stdout.isatty() or os.environ.get("TERM") in (None, "dumb"):
        return Plain(sys.stdout)
    from mdi.cli.chat.markdown import MarkdownDisplay

    return MarkdownDisplay()
