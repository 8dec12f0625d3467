"""What the scripts share: options, logs, and errors, signals and closed pipes -> exit codes."""

import argparse
import contextlib
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mdi.cli.signals import GRACE_S, Signals
from mdi.cli.streams import drop_stdout
from mdi.config.options import defaults_of
from mdi.config.paths import LOGS_DIR
from mdi.errors import ConfigError, MdiError, StorageError
from mdi.inbox import Stopped
from mdi.net.key_sources import KEY_FILE_VARIABLE, make_key_file

Options = TypeVar("Options")


class Parser(argparse.ArgumentParser):
    """An argument parser whose defaults come from an options dataclass, and whose errors are one line."""

    def __init__(self, description: str, options: type | None = None) -> None:
        super().__init__(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self._known = defaults_of(options) if options else {}

    def option(self, *flags: str, **arguments: Any) -> None:
        """Add a flag; its default is the dataclass's."""
        action = self.add_argument(*flags, **arguments)
        action.default = self._known[action.dest]
        if action.default is None and action.help:
            action.default = argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


class _MakeKey(argparse.Action):
    """`--make-key FILE`: write a key instead of running, as `--help` prints a text."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        make_key_file(Path(values))
        print(f"{values}: a new key; copy it to every node and name it there in {KEY_FILE_VARIABLE} or key_file")
        parser.exit()


def add_node_options(parser: Parser) -> None:
    """The options that every node has."""
    parser.option("-v", "--verb", dest="verbose", action="store_true", help="say what happens at each stage")
    parser.option("-d", "--debug", action="store_true", help=f"write a debug log to {LOGS_DIR.name}/")
    parser.option("-c", "--compile", action="store_true", help="compile the stage with torch.compile")
    parser.option("--ckpt", type=Path, metavar="DIR", help="the model's folder")
    parser.option("--chunk", type=Path, metavar="FILE", help="this node's chunk of the model")
    parser.option("--device", help="cpu, mps, cuda or cuda:N (default: the best there is)")
    parser.option("--dtype", help="float32, float16 or bfloat16 (default: what the device computes fast)")
    parser.option("--quantize", metavar="MODE", help="none, int8 or int4 weights (default: as the chunk holds them)")
    parser.option("--seed", type=int, help="seed of the random choices")
    parser.add_argument(
        "--make-key",
        action=_MakeKey,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write a new key for the ring to FILE and exit",
    )


def set_up_logging(verbose: bool, debug_log: str | None = None) -> None:
    """Warnings to stderr, if verbose information too; everything to `logs/<debug_log>` if given."""
    root = logging.getLogger("mdi")
    root.setLevel(logging.DEBUG)
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if verbose else logging.WARNING)
    console.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(console)
    if debug_log is not None:
        path = LOGS_DIR / debug_log
        try:
            LOGS_DIR.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path, mode="w", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"--debug: cannot write {path}: {exc.strerror}") from exc
        file.setFormatter(logging.Formatter("%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s"))
        root.addHandler(file)


def run_script(main: Callable[[Signals], None], *, grace_s: float = GRACE_S) -> NoReturn:
    """Run `main` and exit: 0, 1 for a failed run, 2 for what the user can fix, 128 + n after signal n.

    The first signal ends the program in good order, or `grace_s` later in any case; further ones are ignored meanwhile.
    `main` says what good order is, by the blocks of `Signals`.
    """
    signals = Signals(grace_s)
    signals.watch()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show all of Unicode
    try:
        code = _exit_code(lambda: main(signals))
    finally:
        signals.ignore()
    if signals.came:
        _exit_quickly(code)
    raise SystemExit(code)


def _exit_code(main: Callable[[], None]) -> int:
    try:
        main()
        sys.stdout.flush()
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    except MdiError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "mdi":
            raise
        print(
            f"error: no package {exc.name} for {sys.executable}: run `make venv` and activate .venv, or install the "
            "requirements with `pip install -r requirements.txt`",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:  # the reader of our stdout has seen enough
        drop_stdout()
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        print("error: the disk that the output goes to is full", file=sys.stderr)
        drop_stdout()
        return 1
    except SystemExit as exc:
        if isinstance(exc, Stopped) and exc.code == 128 + signal.SIGINT:
            print("interrupted", file=sys.stderr)
        return exc.code if isinstance(exc.code, int) else 1
    return 0


def _exit_quickly(code: int) -> NoReturn:
    """Exit without taking the interpreter down: with torch in it that takes seconds on a slow machine.

    It can also abort the process where `Stopped` has interrupted the import of a C++ library.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


def options_from(kind: type[Options], arguments: argparse.Namespace) -> Options:
    """The dataclass of the parsed arguments; raises `ConfigError` for a value that is not allowed."""
    return kind(**vars(arguments))
