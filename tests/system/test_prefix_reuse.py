"""Prompts that begin alike: what a slot holds is not computed again, and every text is litgpt's own, in float32."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mdi.config.options import StarterOptions
from mdi.engine.sample import Outcome, Sample, Sink, discard
from support.bench import Bench, once
from support.logs import whenever_logged
from support.models import TRAITS, assert_same_tokens, generate_uncached, make_model, reference_model
from support.rings import Ring, ring_of, starter_for

pytestmark = pytest.mark.slow

Add = Callable[[Sample], None]
N_TOKENS = 8
CONTEXT = 96
SYSTEM = [(7 * k + 3) % 320 for k in range(40)]
# Each begins with another part of the system prompt: none of it, just less and just more than is worth a fork, all.
ALIKE = [[*SYSTEM[:n], 100 + n, 5] for n in (40, 0, 1, 15, 16, 17, 39, 40)] + [SYSTEM, SYSTEM, SYSTEM[:30]]


@pytest.fixture(scope="module")
def rings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Ring]]:
    with contextlib.ExitStack() as stack:
        cache = tmp_path_factory.mktemp("cache")
        yield {n: stack.enter_context(ring_of(n, cache)) for n in (1, 2, 3)}


def generate(
    ring: Ring, folder: Path, prompts: list[list[int]], make_sink: Callable[[Add], Sink] = lambda add: discard,
    **options: Any,
) -> list[Sample]:  # fmt: skip
    """The samples of a run, greedy; those that a sink adds are behind those of `prompts`."""
    values = {
        "dtype": "float32", "temperature": 0.0, "ignore_eos": True, "keep_nodes": True, "n_tokens": N_TOKENS,
        "sequence_length": CONTEXT, **options,
    }  # fmt: skip
    arguments = StarterOptions(ckpt=folder, **values)
    with starter_for(ring.network, arguments, prompts) as (starter, samples):

        def add(sample: Sample) -> None:
            samples.append(sample)
            starter.add(sample)

        for sample in samples:
            sample.sink = make_sink(add)
        starter.prepare()
        starter.run()
    return samples


def assert_equal_to_litgpt(folder: Path, samples: list[Sample]) -> None:
    model = reference_model(folder)
    for sample in samples:
        assert_same_tokens(model, sample.prompt, sample.tokens, generate_uncached(model, sample.prompt, N_TOKENS))


@pytest.mark.parametrize("n_nodes", [1, 2, 3])
@pytest.mark.parametrize(("n_slots", "max_rows"), [(1, 128), (2, 7), (4, 128), (11, 16)])
def test_prompts_that_begin_alike_have_the_texts_of_litgpt(
    n_slots: int, max_rows: int, n_nodes: int, rings: dict[int, Ring], tiny: Path
) -> None:
    samples = generate(rings[n_nodes], tiny, ALIKE, max_slots=n_slots, max_batch_tokens=max_rows)
    assert_equal_to_litgpt(tiny, samples)
    n_whole = sum(sample.n_cached >= 38 for sample in samples)
    assert n_whole >= 2, "of the five prompts with the whole system prompt, three at most computed it"


@pytest.mark.parametrize("trait", ["sliding window", "dual rope", "partial rotary", "mixture of experts"])
def test_a_slot_that_is_cut_back_serves_every_kind_of_attention(
    trait: str, rings: dict[int, Ring], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "org" / "model", **TRAITS[trait])
    prompts = [SYSTEM, SYSTEM[:20], [*SYSTEM[:30], 9], SYSTEM[:5]]
    samples = generate(rings[2], folder, prompts, max_slots=1)
    assert [sample.n_cached for sample in samples] == [0, 19, 20, 4]
    assert_equal_to_litgpt(folder, samples)


class Chat:
    """The sink of a conversation: when a turn has ended it adds the next one."""

    def __init__(self, add: Add, n_turns: int) -> None:
        self._add, self._n_left = add, n_turns - 1

    def __call__(self, sample: Sample, outcome: Outcome) -> None:
        if outcome.finish_reason is not None and self._n_left:
            self._n_left -= 1
            prompt = (*sample.prompt, *sample.tokens, 300 + self._n_left, 17)
            self._add(Sample(sample.number, prompt, sample.params, sink=self))


@pytest.mark.parametrize("n_nodes", [1, 2, 3])
def test_the_tenth_turn_of_a_chat_computes_its_message_alone(
    n_nodes: int, rings: dict[int, Ring], tmp_path: Path
) -> None:
    """Two chats that take turns, and a slot for each."""
    folder = make_model(tmp_path / "org" / "model", block_size=256)
    prompts = [[1, 2, 3], [4, 5]]
    samples = generate(rings[n_nodes], folder, prompts, lambda add: Chat(add, 10), max_slots=2, sequence_length=256)
    assert len(samples) == 20
    for sample in samples[2:]:
        assert len(sample.prompt) - sample.n_cached == 3, "the message, and the token before it, which was never sent"
    assert_equal_to_litgpt(folder, samples)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_node_lost_in_between_changes_no_text(lost: int, make_bench: Callable[[int], Bench], tiny: Path) -> None:
    """What the slots had kept is gone with the ring, and is not missed."""
    bench = make_bench(3)
    machine = bench.machines[lost]
    with whenever_logged("mdi.cluster.supervisor", "is lost: ", machine.start):
        outputs = bench.run(tiny, once(60, machine.kill), prompts=ALIKE, max_slots=2)
    assert bench.n_recoveries == 1
    model = reference_model(tiny)
    for prompt, tokens in zip(ALIKE, outputs, strict=True):
        assert_same_tokens(model, prompt, tokens, generate_uncached(model, prompt, len(tokens)))
    bench.assert_at_rest()
