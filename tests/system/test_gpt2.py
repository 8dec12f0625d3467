"""GPT-2 on a ring gives the tokens that transformers' `generate` gives, greedy in float32."""

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdi.convert.huggingface import convert_folder
from mdi.convert.random import write_byte_tokenizer
from support.bench import N_TOKENS, Bench, once
from support.named_weights import write_folder
from support.paths import DATA
from support.rings import Ring, ring_of

pytestmark = pytest.mark.slow

REFERENCE = json.loads(gzip.decompress((DATA / "transformers_logits.json.gz").read_bytes()))
PROMPTS = REFERENCE["prompts"]
CASES = [case for case in REFERENCE["cases"] if case["config"]["model_type"] == "gpt2"]


@pytest.fixture(scope="module", params=CASES, ids=["gelu, tied", "relu, untied"])
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("org") / "tiny", case["config"], case["shapes"])
    convert_folder(folder, model_name="tiny")
    write_byte_tokenizer(folder, 300)
    return folder


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Ring]]:
    cache = tmp_path_factory.mktemp("cache")
    with contextlib.ExitStack() as stack:
        yield {n: stack.enter_context(ring_of(n, cache)) for n in (1, 2)}


@pytest.mark.parametrize("n_nodes", [1, 2])
def test_ragged_samples_on_a_ring(n_nodes: int, case: dict[str, Any], folder: Path, rings: dict[int, Ring]) -> None:
    """Positions are the starter's business alone."""
    n_tokens = len(case["tokens"][0])
    assert rings[n_nodes].generate(folder, PROMPTS, n_tokens=n_tokens) == case["tokens"]


def test_a_sample_ends_where_no_position_was_learned(
    case: dict[str, Any], folder: Path, rings: dict[int, Ring]
) -> None:
    context = case["config"]["n_positions"]
    (tokens,) = rings[2].generate(folder, PROMPTS[:1], n_tokens=context - len(PROMPTS[0]))
    assert tokens[: len(case["tokens"][0])] == case["tokens"][0]


def test_a_node_is_killed_and_comes_back(
    case: dict[str, Any], folder: Path, make_bench: Callable[[int], Bench]
) -> None:
    bench = make_bench(3)
    machine = bench.machines[1]

    def kill() -> None:
        machine.kill()
        machine.start()

    outputs = bench.run(folder, prompts=PROMPTS, on_token=once(20, kill))
    assert outputs == [tokens[:N_TOKENS] for tokens in case["tokens"]]
    assert bench.n_recoveries == 1
