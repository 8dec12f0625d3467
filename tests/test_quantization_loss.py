"""What the loss of quantization is measured with, on a tiny model."""

import math
from pathlib import Path

import pytest

from benchmarks import quantization_loss
from benchmarks.quantization_loss import Result, common_share, measure, prompts_of, read_windows, table
from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.weights import MODEL_FILE
from mdi.model.span import Span
from support.models import generate_cached, make_model, reference_model

pytestmark = pytest.mark.slow

WINDOWS = [[(7 * i + k) % 320 for i in range(40)] for k in range(16)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    folder = make_model(tmp_path_factory.mktemp("org") / "tiny", n_embd=64, intermediate_size=128)
    (folder / "none.pth").symlink_to(folder / MODEL_FILE)
    for mode in ("int8", "int4"):
        chunks = split_model(folder, [Span(0, 6)], quantization=mode).folder
        (chunks / "model_starter.pth").rename(folder / f"{mode}.pth")
    found: dict[str, Result] = {}
    for mode in ("none", "int8", "int4"):
        found[mode] = measure(folder, folder / f"{mode}.pth", WINDOWS, 4)
    found["none, int8 kv"] = measure(folder, folder / "none.pth", WINDOWS, 4, "int8")
    on_torch = measure(folder, folder / "none.pth", WINDOWS, 4, backend="torch")
    assert on_torch.continuations == found["none"].continuations
    model = reference_model(folder)
    for prompt, tokens in zip(prompts_of(WINDOWS), found["none"].continuations, strict=True):
        assert tokens == generate_cached(model, prompt, 4)
    return found


def test_quantization_costs_more_the_fewer_bits_there_are(results: dict[str, Result]) -> None:
    none, int8, int4, int8_kv = results.values()
    assert none.chunk_bytes > int8.chunk_bytes > int4.chunk_bytes
    differences = [sum(abs(a - b) for a, b in zip(other.losses, none.losses, strict=True)) for other in (int8, int4)]
    assert 0 < differences[0] < differences[1]
    assert int8_kv.losses != none.losses
    assert len(none.losses) == 16 * 39 and len(none.best) == 16 * 40


def test_the_table_holds_all_modes_against_the_first(results: dict[str, Result]) -> None:
    head, _, *rows = table(results).splitlines()
    assert "over none" in head
    assert [row.split(" | ")[0] for row in rows] == ["| none", "| int8", "| int4", "| none, int8 kv"]
    assert " | +0.00% ± 0.00% | 100.0% | 100.0% | " in rows[0]
    perplexity = math.exp(sum(results["int8"].losses) / len(results["int8"].losses))
    assert f"| {perplexity:.2f} |" in rows[1]


def test_what_comes_before_the_first_difference() -> None:
    assert [common_share(tokens, [1, 2, 3, 4]) for tokens in ([1, 2, 3, 4], [1, 2, 0, 4], [0, 2, 3, 4])] == [1, 0.5, 0]


def test_the_text_is_read_in_full_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_loss, "WINDOW", 100)
    windows = read_windows(make_model(tmp_path / "org" / "tiny"), 250)
    assert [len(window) for window in windows] == [100, 100]
    assert read_windows(tmp_path / "org" / "tiny", 99) == []
