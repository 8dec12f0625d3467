"""SmolLM2, tuned with adapters on a few hundred lines, loses less on others. It takes minutes: `make tuning`."""

import csv
from pathlib import Path

import pytest

from support.paths import ROOT
from support.scripts import Network, Scripts, read_samples

pytestmark = pytest.mark.tuning

TEXT = ROOT / "data" / "shakespeare" / "shakespeare.txt"
N_LINES = 400  # the last tenth of them is not trained on
STEPS = 40
PATIENCE_S = 3600.0
WINDOWS = ("--context-length", 64, "--batch-size", 4, "--eval-iters", 4)
LORA = ("--lora", "8,16,0.05", "--lr", 1e-3, "--max-iters", STEPS, "--ckpt-interval", STEPS // 4)
UNTOUCHED = ("--lora", "8,16,0", "--lr", 1e-12, "--max-iters", 1, "--ckpt-interval", 1)


def test_adapters_lower_the_loss_on_lines_that_were_held_out(
    smollm2: Path, scripts: Scripts, alone: Network, tmp_path: Path
) -> None:
    lines = TEXT.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "lines.txt").write_text("".join(lines[:N_LINES]), encoding="utf-8")
    finished(scripts, "prepare_data.py", tmp_path / "lines.txt", "--tokenizer", smollm2, "--out", tmp_path / "tokens")
    before = tuned(scripts, smollm2, tmp_path, "untouched", *UNTOUCHED)[-1]
    after = tuned(scripts, smollm2, tmp_path, "poems", *LORA)
    print(f"validation loss before {before:.3f}, then {', '.join(f'{loss:.3f}' for loss in after)}")
    assert min(after) < before - 0.2
    finished(scripts, "prepare_model.py", "--merge-lora", tmp_path / "poems", "--ckpt-folder", tmp_path / "merged")
    output, merged = tmp_path / "sample.jsonl", tmp_path / "merged" / "local" / "poems"
    options = ("--nodes-config", alone.path, "--prompt-style", "none", "--n-tokens", 60, "--output", output)
    finished(scripts, "sample.py", "--ckpt", merged, "--prompt", "MENENIUS:\n", *options)
    print(read_samples(output)[0][0]["completion"])


def tuned(scripts: Scripts, model: Path, folder: Path, name: str, *options: object) -> list[float]:
    """The validation losses of a run."""
    where = ("--dataset", folder / "tokens", "--ckpt", folder / name, "--device", "cpu")
    finished(scripts, "train.py", "--init", "finetune", "--model", model, *where, *WINDOWS, *options)
    with (folder / name / "training.csv").open(encoding="utf-8") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


def finished(scripts: Scripts, name: str, *arguments: object) -> None:
    result = scripts.run(name, *arguments, timeout_s=PATIENCE_S)
    assert result.code == 0, result.stderr
