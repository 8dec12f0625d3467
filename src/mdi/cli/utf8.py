"""Texts and paths beyond ASCII, in a locale that has none."""

import codecs
import contextlib
import os
import sys


def restart_in_utf8_mode() -> None:
    """Begin anew in Python's UTF-8 mode where the locale is ASCII. Called before anything else.

    In such a locale an `é` on the command line becomes a string that neither a file nor a library outside of Python
    takes. In the locales C and POSIX Python chooses UTF-8 by itself, but not where PYTHONUTF8=0 or another variable
    keeps it from that.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name == "ascii":
        with contextlib.suppress(OSError):  # then what is ASCII works
            os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def is_text(argument: str) -> bool:
    """Whether an argument is text in this locale: bytes that are none become lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)
