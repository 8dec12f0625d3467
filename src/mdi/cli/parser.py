"""How the commands read their arguments: defaults from a dataclass, help in groups, errors of one line."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mdi import __version__
from mdi.cli.completion import SHELLS, completion_script
from mdi.cli.utf8 import is_text
from mdi.config.options import LOG_FORMATS
from mdi.config.paths import LOGS_DIR
from mdi.config.section import defaults_of
from mdi.formats import BACKEND_CHOICES, DTYPES, KV_DTYPES, MODES, QUANTIZED
from mdi.net.key_sources import KEY_FILE_VARIABLE, make_key_file, new_key
from mdi.strings import did_you_mean, quoted

Options = TypeVar("Options")

DISCOVER_S = 3.0  # a node that hears the question answers within a second


class _HelpFormatter(argparse.HelpFormatter):
    """Tells the defaults that a user could type, unless the help text tells them in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default == () or any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if not action.help or nothing or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An argument parser whose defaults come from an options dataclass, and whose errors are one line."""

    def __init__(self, description: str, options: type | None = None) -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter)
        self._known = defaults_of(options) if options else {}
        self._section: argparse._ActionsContainer = self
        self.stray_advice = ""  # ends the error about a word that belongs to no flag
        self.values: dict[str, Sequence[str]] = {}  # of an option that takes one of few, for the completion
        self.add_argument("--version", action="version", version=f"MDI-LLM {__version__}", help="show it and exit")
        self.add_argument(
            "--print-completion",
            action=_PrintCompletion,
            choices=SHELLS,
            dest=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
            metavar="SHELL",
            help=f"show a script that completes these options in {' or '.join(SHELLS)}, and exit",
        )

    def section(self, title: str) -> None:
        """Begin a section of the help text."""
        self._section = self.add_argument_group(title)

    def option(self, *flags: str, values: Sequence[str] = (), **arguments: Any) -> None:
        """Add a flag to the section; its default is the dataclass's. `values` are those that the completion offers."""
        action = self._section.add_argument(*flags, **arguments)
        action.default = self._known[action.dest]
        if action.default is None and action.help:
            action.default = argparse.SUPPRESS
        self.values |= dict.fromkeys(action.option_strings, values) if values else {}

    @property
    def flags(self) -> list[str]:
        """Every flag."""
        return sorted(self._option_string_actions)

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse does it, but an unknown flag is answered with the one that was meant."""
        arguments = sys.argv[1:] if args is None else list(args)
        for argument in arguments:
            if not is_text(argument):
                encoding = sys.getfilesystemencoding().upper()
                self.error(f"{quoted(argument)} is not {encoding} text: type it in that encoding, or rename the file")
        values, unknown = self.parse_known_args(arguments, namespace)
        if unknown:
            is_flag = unknown[0].startswith("-")
            meant = did_you_mean(unknown[0].partition("=")[0], self.flags) if is_flag else self.stray_advice
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return values

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


class Repeated(argparse.Action):
    """A flag that may be given several times: its values, in a tuple."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


class _PrintCompletion(argparse.Action):
    """`--print-completion SHELL`: print a script instead of running."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        assert isinstance(parser, Parser)
        print(completion_script(parser.prog, parser.flags, parser.values, values), end="")
        parser.exit()


class _MakeKey(argparse.Action):
    """`--make-key [FILE]`: print or write a key instead of running, as `--help` prints a text."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        if values is None:
            print(new_key())
        else:
            make_key_file(Path(values))
            print(f"{values}: a new key; copy it to every node and name it there in {KEY_FILE_VARIABLE} or key_file")
        parser.exit()


def add_node_options(parser: Parser) -> None:
    """The options that every node has. What follows is in the section of this node."""
    parser.option("-v", "--verb", dest="verbose", action="store_true", help="say what happens at each stage")
    parser.option("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    parser.option("-d", "--debug", action="store_true", help=f"write a debug log to {LOGS_DIR.name}/")
    parser.option("--log-format", metavar="FORMAT", help="text, or json with information too", values=LOG_FORMATS)
    parser.add_argument(
        "--make-key",
        action=_MakeKey,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        nargs="?",
        metavar="FILE",
        help="print a new key for the ring, or write it to FILE, and exit",
    )
    parser.section("this node")
    parser.option("--ckpt", type=Path, metavar="DIR", help="the model's folder")
    parser.option("--chunk", type=Path, metavar="FILE", help="this node's chunk of the model")
    parser.option("--cache-dir", type=Path, metavar="DIR", help="where received chunks and packed weights are kept")
    devices = ("cpu", "mps", "cuda")
    parser.option("--device", help="cpu, mps, cuda or cuda:N (default: the best there is)", values=devices)
    add_memory_limit(parser, "may take for a model (default: what is free)")
    parser.option(
        "--dtype", help="float32, float16 or bfloat16 (default: the starter's, or the device's best)", values=DTYPES
    )
    parser.option(
        "--quantize",
        metavar="MODE",
        help="none, int8 or int4 weights (default: as the chunk holds them)",
        values=MODES,
    )
    parser.option(
        "--kv-dtype",
        metavar="DTYPE",
        help="float32, float16 or int8 keys and values, with native kernels (default: as exact as the weights)",
        values=KV_DTYPES,
    )
    parser.option(
        "--backend",
        metavar="NAME",
        help="what computes: native (kernels for this CPU), torch, or auto, the fastest that can",
        values=BACKEND_CHOICES,
    )
    parser.option(
        "-c", "--compile", action="store_true", help="compile the torch backend's operations with torch.compile"
    )
    parser.option("--seed", type=int, help="seed of the random choices")


def add_memory_limit(parser: Parser, what: str) -> None:
    """`--memory-limit SIZE`."""
    parser.option("--memory-limit", metavar="SIZE", help=f"3GB, 512MB: the most memory that it {what}")


def add_allow_quantize(parser: Parser, needs: str = "") -> None:
    """`--allow-quantize [MODE]`."""
    parser.option(
        "--allow-quantize",
        nargs="?",
        const=QUANTIZED[0],
        metavar="MODE",
        help=f"let the plan hold nodes in int8, or down to int4, where that makes the ring faster{needs}",
        values=QUANTIZED,
    )


def add_discover(parser: Parser) -> None:
    """`--discover [S]`."""
    parser.option(
        "--discover",
        nargs="?",
        const=DISCOVER_S,
        type=float,
        metavar="S",
        help=f"find secondaries on the local network, within S seconds, {DISCOVER_S:g} if not given; needs a key",
    )


def options_from(kind: type[Options], arguments: argparse.Namespace) -> Options:
    """The dataclass of the parsed arguments; raises `ConfigError` for a value that is not allowed."""
    return kind(**vars(arguments))
