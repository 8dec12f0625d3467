"""What a node imports of litgpt, and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.scripts import write_network

pytestmark = pytest.mark.slow

HEAVY = ("lightning", "torch._dynamo", "torch._inductor", "torchmetrics", "matplotlib", "huggingface_hub")


def run_python(code: str, *arguments: object) -> str:
    """The last line on stdout of an interpreter that runs `code`."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{code}"]
    result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


GENERATE = f"""
import atexit, runpy
atexit.register(lambda: print(sorted(name for name in sys.modules if name in {HEAVY!r})))
sys.argv = ["starter.py", *sys.argv[1:]]
runpy.run_path({str(ROOT / "src" / "starter.py")!r}, run_name="__main__")
"""


def test_a_node_that_has_run_has_imported_nothing_that_serves_training(tiny: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "network.json", 1)
    arguments = ["--ckpt", tiny, "--nodes-config", network.path, "--n-tokens", 3, "--prompt", "abc"]
    assert run_python(GENERATE, *arguments) == "[]"


def test_a_secondary_imports_nothing_that_serves_training() -> None:
    assert run_python(f"import mdi.cli.run; print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"


def test_lightning_serves_the_conversion_of_hugging_face_folders_alone() -> None:
    assert run_python("import mdi.cli.prepare; print('lightning' in sys.modules)") == "False"


def test_litgpt_itself_can_still_be_imported_afterwards() -> None:
    code = """
import mdi.model.litgpt_modules as ours
import litgpt
from litgpt import LLM
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
import litgpt.model
print(litgpt.GPT is ours.GPT, litgpt.Config is ours.Config, LLM.__name__, "lightning" in sys.modules)
"""
    assert run_python(code) == "True True LLM True"


def test_after_litgpt_itself_the_modules_are_its_own() -> None:
    code = "import litgpt, mdi.model.litgpt_modules as ours; print(ours.GPT is litgpt.GPT)"
    assert run_python(code) == "True"
