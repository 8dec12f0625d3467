"""What the scripts share: logs, and errors, signals and closed pipes -> exit codes."""

import codecs
import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from mdi import __version__
from mdi.cli.json_log import JsonFormatter
from mdi.cli.lifeline import end_with_parent
from mdi.cli.signals import GRACE_S, Signals
from mdi.cli.streams import drop_stdout, open_missing
from mdi.cli.utf8 import restart_in_utf8_mode
from mdi.config.paths import LOGS_DIR
from mdi.errors import ConfigError, MdiError, StorageError
from mdi.inbox import Stopped
from mdi.terminal import screen

log = logging.getLogger(__name__)


class _ScreenHandler(logging.Handler):
    """Logs to stderr, beside the text and the progress bars of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        screen.write_line(self.format(record))


def set_up_logging(*, verbose: bool, quiet: bool, as_json: bool = False, debug_log: str | None = None) -> None:
    """Warnings to stderr; if verbose or as JSON information too, if quiet errors alone and no bars.

    Everything goes to `logs/<debug_log>` if that is given.
    """
    screen.is_quiet = quiet
    root = logging.getLogger("mdi")
    root.setLevel(logging.DEBUG)
    console = _ScreenHandler()
    console.setLevel(logging.ERROR if quiet else logging.INFO if verbose or as_json else logging.WARNING)
    console.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(message)s"))
    root.addHandler(console)
    if debug_log is not None:
        path = LOGS_DIR / debug_log
        try:
            LOGS_DIR.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, mode="w", encoding="utf-8", errors="backslashreplace")
        except OSError as exc:
            raise StorageError(f"--debug: cannot write {path}: {exc.strerror}") from exc
        file.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s"))
        root.addHandler(file)


def announce(what: str) -> None:
    """The first line of a node: the libraries that it imports next take seconds."""
    log.warning("MDI-LLM %s: %s; loading torch", __version__, what)


def run_script(main: Callable[[Signals], None], *, grace_s: float = GRACE_S) -> NoReturn:
    """Run `main` and exit: 0, 1 for a failed run, 2 for what the user can fix, 128 + n after signal n.

    The first signal ends the program in good order, or `grace_s` later in any case; further ones are ignored meanwhile.
    `main` says what good order is, by the blocks of `Signals`.
    """
    restart_in_utf8_mode()
    open_missing()
    signals = Signals(grace_s)
    signals.watch()
    end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show all of Unicode; or the name of a file that is not UTF-8.
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "replace")
    try:
        code = _exit_code(lambda: main(signals))
    finally:
        signals.ignore()
    if signals.came:
        _exit_quickly(code)
    raise SystemExit(code)


def _exit_code(main: Callable[[], None]) -> int:
    code = 0
    try:
        code = _ended(main)
        sys.stdout.flush()  # however it ended: what --help says ends by `SystemExit`
    except BrokenPipeError:  # the reader of our stdout has seen enough
        drop_stdout()
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        _say("error: the disk that the output goes to is full")
        drop_stdout()
        return code or 1
    return code


def _ended(main: Callable[[], None]) -> int:
    """Run `main` and say why it failed; its exit code."""
    try:
        main()
    except ConfigError as exc:
        _say(f"error: {exc}")
        return 2
    except MdiError as exc:
        _say(f"error: {exc}")
        return 1
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "mdi":
            raise
        _say(
            f"error: no package {exc.name} for {sys.executable}: run `make venv` and activate .venv, or install the "
            "requirements with `pip install -r requirements.txt`"
        )
        return 1
    except SystemExit as exc:
        if isinstance(exc, Stopped) and exc.code == 128 + signal.SIGINT:
            _say("interrupted")
        return exc.code if isinstance(exc.code, int) else 1
    return 0


def _say(line: str) -> None:
    """Why the program ends: in the form of its log, as soon as it has one."""
    if logging.getLogger("mdi").handlers:
        log.error("%s", line)
    else:
        screen.write_line(line)


def _exit_quickly(code: int) -> NoReturn:
    """Exit without taking the interpreter down: with torch in it that takes seconds on a slow machine.

    It can also abort the process where `Stopped` has interrupted the import of a C++ library.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)
