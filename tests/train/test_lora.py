"""Adapters: they alone are trained and kept, and merged they are a model like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mdi.checkpoint.adapters import ADAPTERS_FILE, FACTS_FILE, is_adapter, read_facts
from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.folder import find_folder
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cli.prepare import prepare
from mdi.config.lora import Lora, parse_lora
from mdi.config.prepare_options import PrepareOptions
from mdi.errors import CheckpointError, ConfigError
from mdi.model.architecture import ModelConfig
from mdi.train.checkpoints import STATE_FILE
from mdi.train.lora import add_adapters
from mdi.train.model import build_model, draw_weights, load_weights
from support.training import begun, gpt2, last_weights, llama, losses, numbers, ring_logits, run

LORA = Lora(r=2, alpha=4, dropout=0.0)
TUNED: dict[str, Any] = {"init": "finetune", "lora": LORA, "lr": 0.05}
IDS = list(range(10))


@pytest.fixture(scope="module", params=[gpt2(), llama()], ids=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained for a moment."""
    folder = begun(tmp_path_factory.mktemp("base") / "model", request.param)
    run(folder, dataset, max_iters=4)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "poems"
    run(folder, dataset, model=str(base), **TUNED)
    return folder


def merged(adapters: Path, root: Path, **options: Any) -> Path:
    return prepare(PrepareOptions(merge_lora=adapters, ckpt_folder=root / "checkpoints", **options))[0]


def adapted(base: Path, adapters: Path) -> torch.nn.Module:
    """The base with its adapters beside its weights."""
    config = load_config(base)
    model = build_model(config)
    load_weights(model, config, base)
    add_adapters(model, config, LORA, seed=0)
    model.load_state_dict(dict(open_weights(adapters / ADAPTERS_FILE)), strict=False)
    return model.eval()


def test_only_adapters_are_trained_and_kept(base: Path, adapters: Path) -> None:
    stored = open_weights(adapters / ADAPTERS_FILE)
    assert set(stored) == {f"transformer.h.{i}.attn.qkv.lora_{part}" for i in range(2) for part in "AB"}
    assert last_weights(adapters).keys() == set(stored)
    assert {path.name for path in adapters.iterdir()} == {
        ADAPTERS_FILE,
        FACTS_FILE,
        STATE_FILE,
        "training.csv",
        "last",
    }
    facts = read_facts(adapters)
    assert (facts.base, facts.lora) == (base, LORA)


@pytest.mark.parametrize("config", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_a_model_learns_by_its_adapters_while_its_weights_stay(config: ModelConfig) -> None:
    model, ids = build_model(config), torch.arange(12)[None]
    draw_weights(model, config, seed=1)
    for weight in model.parameters():
        weight.data *= 5 if weight.dim() > 1 else 1  # of a trained model: attention has a say
    plain = model(ids).detach()
    add_adapters(model, config, LORA, seed=1)
    assert torch.equal(model(ids).detach(), plain)  # nothing is added yet
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.AdamW((weight for weight in model.parameters() if weight.requires_grad), lr=0.02)
    found = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < found[0] - 0.01
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if is_adapter(name)}


def test_merged_they_are_a_model_that_computes_the_same(base: Path, adapters: Path, tmp_path: Path) -> None:
    folder, manifest = prepare(PrepareOptions(merge_lora=adapters, ckpt_folder=tmp_path, n_nodes=2))
    assert folder == tmp_path / "local" / "poems"
    assert manifest is not None
    beside = adapted(base, adapters)(torch.tensor([IDS]))[0].detach()
    torch.testing.assert_close(ring_logits(folder, IDS), beside, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ring_logits(base, IDS), beside, atol=1e-3)
    before, after = open_weights(base / MODEL_FILE), open_weights(folder / MODEL_FILE)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"transformer.h.{i}.attn.qkv.weight" for i in range(2)
    }
    config = load_config(base)
    assert load_config(folder) == config
    keys = slice(config.n_head * config.head_size, -config.n_query_groups * config.head_size)
    name = "transformer.h.0.attn.qkv.weight"
    assert torch.equal(before[name][keys], after[name][keys])
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_adapters_of_the_last_step_are_merged_too(base: Path, adapters: Path, tmp_path: Path) -> None:
    folder = merged(adapters / "last", tmp_path, dtype="bfloat16")
    assert folder.name == "poems-last"
    weights = open_weights(folder / MODEL_FILE)
    assert {tensor.dtype for tensor in weights.meta.values()} == {torch.bfloat16}


def test_a_run_with_dropout_goes_on_exactly(base: Path, dataset: Path, tmp_path: Path) -> None:
    tuned = TUNED | {"model": str(base), "lora": Lora(2, 4, 0.5)}
    whole, broken, dry = tmp_path / "whole", tmp_path / "broken", tmp_path / "dry"
    run(whole, dataset, **tuned)
    run(broken, dataset, n_steps=5, **tuned)
    run(broken, dataset, init="resume", lr=TUNED["lr"])
    assert losses(broken) == losses(whole)
    assert content_digest(broken / ADAPTERS_FILE) == content_digest(whole / ADAPTERS_FILE)
    run(dry, dataset, n_steps=2, model=str(base), **TUNED)
    assert numbers(dry)[0] == pytest.approx(numbers(whole)[0])  # nothing is added yet
    assert numbers(dry)[1] != numbers(whole)[1]


def test_a_model_that_moved_is_named_and_another_one_is_refused(
    base: Path, adapters: Path, dataset: Path, tmp_path: Path
) -> None:
    other = begun(tmp_path / "other", load_config(base))
    run(other, dataset, max_iters=1)
    with pytest.raises(CheckpointError, match="is not the model that the adapters"):
        merged(adapters, tmp_path, model=str(other))
    assert not list((tmp_path / "checkpoints").rglob("*.pth"))
    with pytest.raises(CheckpointError, match="is not the model that the adapters"):
        run(adapters, dataset, init="resume", model=str(other), max_iters=9)
    moved = base.rename(base.with_name("moved"))
    try:
        with pytest.raises(CheckpointError, match=r"model: no model_config\.yaml"):
            merged(adapters, tmp_path)
        assert (merged(adapters, tmp_path, model=str(moved)) / MODEL_FILE).is_file()
    finally:
        moved.rename(base)


def test_adapters_are_not_taken_for_a_model(base: Path, adapters: Path, dataset: Path, tmp_path: Path) -> None:
    for take in (find_folder, lambda folder: prepare(PrepareOptions(model=str(folder)))):
        with pytest.raises(ConfigError, match=rf"poems: holds adapters, .* --merge-lora {adapters}"):
            take(adapters)
    with pytest.raises(ConfigError, match=r"--lora: the adapters in .* are others"):
        run(adapters, dataset, init="resume", lora=Lora(3, 4, 0.0))
    with pytest.raises(ConfigError, match="is not one of adapters"):
        run(base, dataset, init="resume", lora=LORA)
    with pytest.raises(CheckpointError, match=r"has no lora\.json"):
        merged(base, tmp_path)


def test_damaged_adapters_are_one_line(adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    facts = json.loads((adapters / FACTS_FILE).read_text())

    def refused(problem: str, **changes: Any) -> None:
        (folder / FACTS_FILE).write_text(json.dumps(facts | changes))
        with pytest.raises(CheckpointError, match=problem):
            merged(folder, tmp_path)

    refused(r"no lit_model\.pth\.lora yet")
    weights = dict(open_weights(adapters / ADAPTERS_FILE))
    torch.save(weights, folder / ADAPTERS_FILE)
    refused(r"lora\.json: base_digest is", base_digest="x")
    refused(r"lora\.json: targets is", targets=["query"])
    refused(r"lora\.json: damaged: r is '8'", r="8")
    refused(r"lora\.json: damaged: --lora: dropout 1", dropout=1)
    refused("are not the adapters of 2 layers", r=3)
    torch.save(dict(list(weights.items())[1:]), folder / ADAPTERS_FILE)
    refused("are not the adapters of 2 layers")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8,16", "--lora 8,16: expected r,alpha,dropout"),
        ("8,x,0", "--lora 8,x,0: expected r,alpha,dropout"),
        ("0,16,0", "--lora: r 0: must be a number from 1"),
        ("8,0,0", "--lora: alpha 0.0: must be above 0"),
        ("8,16,1", "--lora: dropout 1.0: must be a number from 0"),
    ],
)
def test_wrong_numbers_are_refused(text: str, problem: str) -> None:
    assert parse_lora("8,16,0.05") == Lora(8, 16, 0.05)
    with pytest.raises(ConfigError, match=problem):
        parse_lora(text)
