"""The plan: layers and slots from what is known of the model and the nodes, and nothing else."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.folder import ModelFolder, open_folder
from mdi.cluster.plan import Member, Plan, PlanOptions, is_worth_measuring, overridden_split, plan
from mdi.config.network import NodeConfig
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.ids import NodeId
from mdi.model.span import Span, spans_of
from support.models import make_model
from support.statuses import IDLE

OPTIONS = PlanOptions(context=20, n_slots=4, max_batch_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("org") / "tiny")


def members(*shares: float, free_bytes: int | None = None) -> list[Member]:
    status = replace(IDLE, free_memory_bytes=free_bytes)
    nodes = [NodeConfig(f"10.0.0.{i}", 1, 2, 3, share=share) for i, share in enumerate(shares)]
    return [Member(NodeId(i), node, status) for i, node in enumerate(nodes)]


def counts(planned: Plan) -> list[int]:
    return [len(span) for span in planned.spans]


def test_layers_go_to_the_members_by_their_shares(folder: Path) -> None:
    model = open_folder(folder, 3)
    assert sum(counts(plan(model, members(1, 1, 1), OPTIONS))) == 6
    assert counts(plan(model, members(1, 1, 1000), OPTIONS)) == [1, 1, 4]
    assert counts(plan(model, members(1), OPTIONS)) == [6]


def test_nothing_is_known_of_nodes_that_were_not_asked(folder: Path) -> None:
    unasked = [replace(member, status=None) for member in members(1, 1)]
    planned = plan(open_folder(folder, 2), unasked, OPTIONS)
    assert (planned.n_slots, planned.context, planned.names) == (4, 20, ["starter", "secondary 0"])


def fits(model: ModelFolder, free_bytes: int, quantize: Mode | None = None, shares: tuple[float, ...] = (1, 1)) -> bool:
    try:
        plan(model, members(*shares, free_bytes=free_bytes), replace(OPTIONS, quantize=quantize))
    except ConfigError:
        return False
    return True


def test_slots_fit_into_the_memory_that_the_nodes_report(folder: Path) -> None:
    model = open_folder(folder, 2)
    assert plan(model, members(1, 1, free_bytes=10**9), OPTIONS).n_slots == 4
    with pytest.raises(ConfigError, match="the weights take"):
        plan(model, members(1, 1, free_bytes=1000), OPTIONS)
    needed = next(free for free in range(1000, 10**6, 1000) if fits(model, free))
    assert 1 <= plan(model, members(1, 1, free_bytes=needed), OPTIONS).n_slots < 4
    with pytest.raises(ConfigError, match="4 slots of"):
        plan(model, members(1, 1, free_bytes=needed), replace(OPTIONS, is_fixed=True))


def test_where_the_fastest_split_has_no_room_it_is_the_one_with_most(tmp_path: Path) -> None:
    """The starter has a large head and embedding, of which the second takes memory and no time."""
    folder = make_model(tmp_path / "org" / "tiny", n_layer=12, padded_vocab_size=4096)
    model = open_folder(folder, 2)
    fastest = counts(plan(model, members(1, 1), OPTIONS))
    assert fastest[0] > 1
    needed = next(free for free in range(10**6, 10**7, 10_000) if fits(model, free))
    tight = members(1, 1, free_bytes=needed)
    assert counts(plan(model, tight, OPTIONS)) == [1, 11]
    with pytest.raises(ConfigError, match="starter: the weights take"):
        plan(model, tight, replace(OPTIONS, split=",".join(map(str, fastest))))
    split_model(folder, spans_of(fastest))
    with pytest.raises(ConfigError, match="starter: the weights take"):  # the chunks say which split it is
        plan(open_folder(folder, 2), tight, OPTIONS)


def test_a_plan_after_a_loss_covers_all_layers_with_those_who_are_left(folder: Path) -> None:
    first, _, last = members(1, 1, 1)
    planned = plan(open_folder(folder, 3), [first, last], OPTIONS)
    assert planned.members == (0, 2)
    assert [layer for span in planned.spans for layer in range(*span)] == list(range(6))
    cut = planned.spans[1].start
    assert str(planned) == f"layers 0 to {cut - 1} on starter, layers {cut} to 5 on secondary 1"


def test_auto_takes_the_split_of_the_chunks_and_an_explicit_one_wins(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "tiny")
    split_model(folder, [Span(0, 1), Span(1, 6)])
    model = open_folder(folder, 2)
    assert counts(plan(model, members(1, 1), OPTIONS)) == [1, 5]
    assert counts(plan(model, members(1, 1), replace(OPTIONS, split="4,2"))) == [4, 2]
    (folder / "lit_model.pth").unlink()
    without = open_folder(folder, 2)
    assert counts(plan(without, members(1, 1), OPTIONS)) == [1, 5]
    with pytest.raises(CheckpointError, match=r"the split 1,5 with quantization none, not 4,2 .* leave out --split"):
        plan(without, members(1, 1), replace(OPTIONS, split="4,2"))


def test_shares_that_the_split_of_the_chunks_overrides_are_reported(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "tiny")
    assert overridden_split(open_folder(folder, 2), (1, 6), OPTIONS) is None, "there are no chunks"
    split_model(folder, [Span(0, 3), Span(3, 6)])
    model = open_folder(folder, 2)
    said = overridden_split(model, (1, 6), OPTIONS)
    assert said is not None and "the split 3,3 of" in said and "2nodes is used" in said
    asked = re.search(r"asks for ([0-9,]+): --split \1 changes it", said)
    assert asked is not None
    assert overridden_split(model, (1, 6), replace(OPTIONS, split=asked[1])) is None
    assert overridden_split(model, (1, 1), OPTIONS) is None


def test_auto_measures_nodes_that_may_differ_where_nothing_says_how_fast_they_are(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    model, several = open_folder(path, 2), members(1, 1)
    assert is_worth_measuring(model, several, OPTIONS)
    assert not is_worth_measuring(model, members(1), OPTIONS)
    assert not is_worth_measuring(model, members(1, 2), OPTIONS), "the user has said how fast they are"
    assert not is_worth_measuring(model, several, replace(OPTIONS, split="3,3"))
    near = [replace(member, config=replace(member.config, addr=f"127.0.0.{i}")) for i, member in enumerate(several)]
    assert not is_worth_measuring(model, near, OPTIONS), "they are alike"
    silent = [several[0], replace(several[1], status=None)]
    assert not is_worth_measuring(model, silent, OPTIONS), "it would not answer either"
    cuda = [replace(near[0], status=replace(IDLE, device="cuda:0")), replace(near[1], status=IDLE)]
    assert is_worth_measuring(model, cuda, OPTIONS)
    split_model(path, spans_of([3, 3]))
    assert not is_worth_measuring(open_folder(path, 2), several, OPTIONS), "there is a split"


@pytest.mark.slow
def test_a_node_alone_counts_the_weights_that_it_will_load(tmp_path: Path) -> None:
    """The whole model, though quantized chunks of it lie there; those, where they are asked for."""
    folder = make_model(tmp_path / "org" / "tiny")
    model = open_folder(folder, 1)
    tight = next(free for free in range(1000, 10**6, 500) if fits(model, free, shares=(1,)))
    split_model(folder, [Span(0, 6)], quantization="int8")
    model = open_folder(folder, 1)
    assert model.manifests[1].quantization == "int8"
    assert not fits(model, tight - 500, shares=(1,))
    assert fits(model, tight - 500, "int8", shares=(1,))


def test_planning_touches_no_file_and_chunks_are_written_after_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "org" / "tiny")
    model = open_folder(folder, 2)
    planned = plan(model, members(1, 1), OPTIONS)
    assert not (folder / "chunks").exists()
    written = model.with_chunks(list(planned.spans), None)
    assert written.manifests[2].spans == planned.spans
    assert written.chunk(2, 1).is_file()
    assert written.with_chunks(list(planned.spans), None) is written, "they are fresh: nothing to write"
