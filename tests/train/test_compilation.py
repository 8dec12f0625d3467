"""`-c`: training with a compiled model, and where there is no compiler."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import cpp_compiler_search

from mdi.errors import ConfigError
from mdi.model.shapes import model_shapes
from support.training import begun, last_weights, llama, numbers, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch, about itself
]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """No test finds what another one has compiled, or has found out about compilers."""
    yield
    torch._dynamo.reset()
    cpp_compiler_search.cache_clear()


# The compiler that is used is slow to warm up: a minute or two. All that comes before it is the same with another one.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.tuning)])
def test_a_compiled_model_has_the_losses_of_a_plain_one(
    backend: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, compiled = begun(tmp_path / "plain", llama()), begun(tmp_path / "compiled", llama())
    run(plain, dataset, max_iters=4, ckpt_interval=2)
    counters.clear()
    run(compiled, dataset, max_iters=4, n_steps=2, ckpt_interval=2, compile=True)
    n_graphs = counters["stats"]["unique_graphs"]
    assert n_graphs >= 2  # with gradients and without
    assert not counters["graph_break"]
    assert last_weights(compiled).keys() == model_shapes(llama()).keys()
    run(compiled, dataset, max_iters=4, init="resume", ckpt_interval=2)
    assert counters["stats"]["unique_graphs"] == n_graphs
    assert numbers(compiled) == pytest.approx(numbers(plain), abs=1e-4)


def test_without_a_compiler_there_is_one_line_before_anything_is_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # empty
    folder = begun(tmp_path / "model", llama())
    with pytest.raises(ConfigError, match=r"-c: torch cannot compile for cpu here: .*compiler.*: install") as caught:
        run(folder, dataset, compile=True)
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["model_config.yaml"]
