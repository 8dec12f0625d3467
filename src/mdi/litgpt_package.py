"""The package litgpt without what its initialiser imports.

`import litgpt` imports lightning, and that torch._dynamo, torchmetrics and more, which serve training: 1.7 s of
processor time and 125 MB in each process. What nodes use of litgpt, its configurations, modules and prompts, needs
none of it.
"""

import importlib.util
import sys
from typing import Any


def register() -> None:
    """Let modules of litgpt be imported without its initialiser. That runs when another name of litgpt is asked for."""
    if "litgpt" in sys.modules:
        return
    spec = importlib.util.find_spec("litgpt")
    assert spec is not None and spec.loader is not None, "litgpt is a dependency"
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def initialise(name: str) -> Any:
        # Whoever looks through the modules of a process asks for names with underscores; and `from litgpt import x`
        # imports the module x where this raises.
        if name.startswith("__") or importlib.util.find_spec(f"litgpt.{name}") is not None:
            raise AttributeError(name)
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = initialise  # PEP 562
    sys.modules["litgpt"] = package
