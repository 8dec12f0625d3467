"""MDI-LLM: one language model on a ring of machines, none of which could hold it alone."""

import sys

__version__ = "0.2.0"

# The first lines of the package that any command runs. Older versions have to understand this file.
if sys.version_info < (3, 10):  # noqa: UP036
    found = "{} is {}.{}".format(sys.executable, *sys.version_info[:2])
    sys.stderr.write("error: Python 3.10 or newer is needed, and " + found + ": use another, as in `make PYTHON=...`\n")
    raise SystemExit(2)
