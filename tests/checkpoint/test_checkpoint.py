"""Splitting, digests, and telling a right file from a wrong one."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from litgpt.config import Config, configs

from mdi.checkpoint.chunks import is_fresh, remake_chunk, split_model
from mdi.checkpoint.config import config_from_dict, find_models, load_config
from mdi.checkpoint.digests import content_digest, digest_of
from mdi.checkpoint.folder import open_folder
from mdi.checkpoint.manifest import Manifest, chunk_name, chunks_folder, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import select
from mdi.documents import misfit
from mdi.errors import CheckpointError, StorageError
from mdi.model.span import Span, spans_of
from support.files import small_files_only
from support.models import BASE, TRAITS, make_model
from support.rings import ring_of

SPANS = spans_of([1, 2, 3])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "org" / "model")


def test_a_split_gives_every_tensor_to_one_node(model: Path) -> None:
    steps: list[int] = []
    manifest = split_model(model, SPANS, advance=steps.append)
    whole = open_weights(model / "lit_model.pth")
    chunks = [open_weights(chunks_folder(model, 3) / chunk_name(node)) for node in range(3)]
    assert sorted(name for chunk in chunks for name in chunk) == sorted(whole)
    for chunk in chunks:
        for name, tensor in chunk.items():
            assert torch.equal(tensor, whole[name])
    assert set(chunks[1]) == {name for name in whole if name.startswith(("transformer.h.1.", "transformer.h.2."))}
    assert sum(steps) == sum(tensor.nbytes for tensor in whole.values())
    assert manifest == read_manifest(chunks_folder(model, 3))
    assert manifest.spans == tuple(SPANS) and manifest.dtype == "float32" and manifest.quantization == "none"
    assert manifest.model_digest == digest_of(whole)


def test_a_manifest_holds_the_digests_of_its_files(model: Path) -> None:
    manifest = split_model(model, SPANS)
    for node, file in enumerate(manifest.files):
        path = chunks_folder(model, 3) / file.name
        assert file.name == chunk_name(node) and file.n_bytes == path.stat().st_size
        assert file.digest == content_digest(path) == digest_of(open_weights(path))


def test_a_digest_knows_names_dtypes_shapes_and_bytes_but_not_the_file(tmp_path: Path) -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    torch.save(base, tmp_path / "a.pth")
    torch.save(dict(reversed(base.items())), tmp_path / "b.pth")
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "b.pth").read_bytes()
    assert content_digest(tmp_path / "a.pth") == content_digest(tmp_path / "b.pth") == digest_of(base)
    changes: list[dict[str, torch.Tensor]] = [
        {"a": base["a"], "c": base["b"]},
        base | {"b": torch.ones(2, dtype=torch.float64)},
        base | {"a": base["a"].view(3, 2)},
        base | {"b": torch.tensor([1.0, 1.0 + 2**-23])},
        {"a": base["a"]},
    ]
    assert len({digest_of(weights) for weights in [base, *changes]}) == 6


def test_a_tied_tensor_is_stored_once(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    weights = {name: tensor.clone() for name, tensor in open_weights(folder / "lit_model.pth").items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    torch.save(weights, folder / "lit_model.pth")
    for dtype in (None, "bfloat16"):
        chunk = open_weights(split_model(folder, SPANS, dtype).folder / chunk_name(0))
        assert chunk.meta["lm_head.weight"] is chunk.meta["transformer.wte.weight"]


def test_a_split_can_cast(model: Path) -> None:
    manifest = split_model(model, SPANS, "bfloat16")
    chunk = open_weights(manifest.folder / chunk_name(2))
    whole = open_weights(model / "lit_model.pth")
    assert manifest.dtype == "bfloat16"
    assert all(torch.equal(tensor, whole[name].bfloat16()) for name, tensor in chunk.items())


def test_an_interrupted_split_leaves_nothing_that_looks_finished(model: Path) -> None:
    split_model(model, SPANS)
    calls = 0

    def interrupt(n_bytes: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split_model(model, spans_of([2, 2, 2]), advance=interrupt)
    folder = chunks_folder(model, 3)
    assert read_manifest(folder) is None
    assert not list(folder.glob(".*"))


def test_a_full_disk_is_reported_before_anything_is_written(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(model)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"the chunks take 0\.27 MB and 1000 B are free"):
        split_model(model, SPANS)
    assert not list(chunks_folder(model, 3).glob("*.pth"))


def test_a_disk_that_fills_up_leaves_no_chunk(model: Path) -> None:
    with small_files_only(), pytest.raises(StorageError, match=r"chunk.*\.pth cannot be written: is the disk full\?"):
        split_model(model, SPANS)
    assert not any(path.is_file() for path in chunks_folder(model, 3).iterdir())


def published(weights: Mapping[str, torch.Tensor], span: Span, config: object) -> dict[str, torch.Tensor]:
    """A secondary chunk as the published program writes it: layers from 0, attention fused and interleaved."""
    head_size, n_groups, q_per_kv = config.head_size, config.n_query_groups, config.n_head // config.n_query_groups  # type: ignore[attr-defined]

    def interleave(qkv: torch.Tensor) -> torch.Tensor:
        sizes = (n_groups * q_per_kv * head_size, n_groups * head_size, n_groups * head_size)
        chunks = zip(*(part.chunk(n_groups) for part in qkv.split(sizes)), strict=True)
        return torch.cat([part for group in chunks for part in group])

    chunk = {}
    for name, tensor in weights.items():
        layer = int(name.split(".")[2])
        renumbered = name.replace(f".h.{layer}.", f".h.{layer - span.start}.")
        fused = ".attn.qkv." in name
        chunk[renumbered.replace(".attn.qkv.", ".attn.attn.")] = interleave(tensor) if fused else tensor
    return chunk


@pytest.mark.parametrize("trait", ["llama", "attention bias", "multi-query"])
def test_a_published_chunk_is_understood(trait: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, **TRAITS[trait])
    config, whole, span = load_config(folder), open_weights(folder / "lit_model.pth"), Span(2, 5)
    own = select(whole, config, 1, span)
    translated = select(published(own, span, config), config, 1, span)
    assert digest_of(translated) == digest_of(own)


def test_a_published_chunk_of_another_length_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path)
    config, whole = load_config(folder), open_weights(folder / "lit_model.pth")
    chunk = published(select(whole, config, 1, Span(1, 4)), Span(1, 4), config)
    with pytest.raises(CheckpointError, match="a chunk of 3 layers in the published numbering, not of 2"):
        select(chunk, config, 1, Span(4, 6))


def test_a_file_of_other_layers_or_another_model_is_refused(tmp_path: Path) -> None:
    folder, other = make_model(tmp_path / "a"), make_model(tmp_path / "b", n_embd=48)
    config, whole = load_config(folder), open_weights(folder / "lit_model.pth")
    with pytest.raises(CheckpointError, match="this file holds layers 1 to 2, not layers 3 to 4"):
        select(select(whole, config, 1, Span(1, 3)), config, 1, Span(3, 5))
    with pytest.raises(CheckpointError, match=r"has the shape \(48,\) where this model has \(32,\)"):
        select(open_weights(other / "lit_model.pth"), config, 1, Span(1, 3))
    with pytest.raises(CheckpointError, match="holds no layers"):
        select({"x": torch.zeros(1)}, config, 1, Span(1, 3))


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "spoil",
    [
        damage(lambda data: b""),
        damage(lambda data: data[: len(data) // 2]),
        damage(lambda data: data[:-30]),
        damage(lambda data: b"nonsense" * 100),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"a": "text"}, path),
        lambda path: torch.save({"a": torch.zeros(2), "b": 1}, path),
        lambda path: torch.save(torch.nn.Linear(2, 2), path),  # a pickled class
        lambda path: torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_names_it(spoil: Callable[[Path], None], model: Path) -> None:
    path = model / "lit_model.pth"
    spoil(path)
    with pytest.raises(CheckpointError, match="lit_model"):
        open_weights(path)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"a": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def test_a_pickle_that_calls_torch_wrongly_is_a_damaged_file(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (torch._utils._rebuild_tensor_v2, ())  # a TypeError

    torch.save({"a": Payload()}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=r"wrong\.pth: damaged"):
        open_weights(tmp_path / "wrong.pth")


@pytest.mark.parametrize("name", ["transformer.h.1.attn.qkv.weight", "transformer.h.1.norm_1.weight"])
def test_integers_without_their_scale_are_refused(name: str, model: Path) -> None:
    whole = open_weights(model / "lit_model.pth")
    with pytest.raises(CheckpointError, match=f"{name} holds int64 numbers without their scale"):
        select({**whole, name: whole[name].long()}, load_config(model), 1, Span(1, 2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"format_version": 9}', "format 9, this version reads 3"),
        ('{"format_version": 2, "spans": 3, "files": []}', "damaged"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_a_damaged_manifest_says_what_to_do(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=problem):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spans": [[0, 2**63], [1, 3], [3, 6]]}, "damaged"),
        ({"spans": [[0, 2**62], [1, 3], [3, 6]]}, "invalid span"),
        ({"files": [{"name": "../secret", "n_bytes": 1, "digest": "ab" * 32}] * 3}, "names of chunks"),
        ({"files": [{"name": chunk_name(i), "n_bytes": "1", "digest": "ab" * 32} for i in range(3)]}, "n_bytes"),
    ],
)
def test_a_manifest_with_wrong_values_is_damaged(change: dict[str, object], problem: str, model: Path) -> None:
    split_model(model, SPANS)
    path = chunks_folder(model, 3) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=problem):
        read_manifest(path.parent)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"dtype": None}, "its dtype is no text"),
        ({"dtype": ["float32"]}, "its dtype is no text"),
        ({"files": [{"name": "model_starter.pth", "n_bytes": True, "digest": ""}]}, "n_bytes is True, not int"),
        ({"files": ["model_starter.pth"]}, "damaged"),
        ({"files": [["name"]]}, "damaged"),
    ],
)
def test_a_manifest_with_values_of_other_types_is_damaged(change: dict[str, object], problem: str, model: Path) -> None:
    split_model(model, SPANS)
    path = chunks_folder(model, 3) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=problem):
        read_manifest(path.parent)


def test_a_chunk_is_not_remade_in_an_unknown_dtype(model: Path) -> None:
    manifest = replace(split_model(model, SPANS), dtype="float\n33")
    with pytest.raises(CheckpointError, match="the dtype float 33, which is unknown"):
        remake_chunk(model, manifest, 1)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("norm_eps", "1e-5", "norm_eps is '1e-5', not float"),
        ("bias", "no", "bias is 'no', not bool"),
        ("n_layer", 2.0, "n_layer is 2.0, not int"),
        ("name", ["x"], r"name is \['x'\], not str"),
        ("rope_base", "x", "rope_base is 'x', not int"),
        ("sliding_window_size", 10**39, "sliding_window_size is 10+, not within 0 and 2147483647"),
        ("block_size", -1, "block_size is -1, not within 0 and"),
    ],
)
def test_a_configuration_with_a_wrong_value_is_refused_by_its_name(name: str, value: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        config_from_dict(BASE | {"sliding_window_indices": [0] * BASE["n_layer"], name: value})


def test_all_configurations_of_litgpt_have_values_of_their_types() -> None:
    for entry in configs:
        assert misfit(asdict(Config(**entry)), Config) is None
    assert config_from_dict(BASE | {"rope_base": 10000.5}).rope_base == 10000.5


@pytest.mark.parametrize(
    ("placing", "indices"),
    [("all", [1] * 6), (1, [1] * 6), (None, [1] * 6), ("interleaved", [1, 0] * 3), (2, [1, 0] * 3)],
)
def test_the_fields_of_an_earlier_litgpt_are_understood(placing: object, indices: list[int]) -> None:
    """litGPT 0.4.13 to 0.5.7 wrote the word, or the distance that it stands for."""
    written = BASE | {"sliding_window_size": 7, "sliding_window_layer_placing": placing, "rope_n_elem": 8}
    assert config_from_dict(written) == config_from_dict(
        BASE | {"sliding_window_size": 7, "sliding_window_indices": indices}
    )
    without = BASE | {"sliding_window_size": None, "sliding_window_layer_placing": placing}
    assert config_from_dict(without) == config_from_dict(BASE)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sliding_window_layer_placing": "odd"}, "sliding_window_layer_placing is 'odd', not all or interleaved"),
        ({"sliding_window_layer_placing": [1]}, r"sliding_window_layer_placing is \[1\], not all"),
        ({"rope_n_elem": 4}, "rope_n_elem is 4, but the other fields make 8"),
    ],
)
def test_a_wrong_value_of_an_earlier_field_is_refused(change: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        config_from_dict(BASE | {"sliding_window_size": 7} | change)


def test_a_finetuned_model_is_split_as_the_same_weights_alone(model: Path) -> None:
    """As `litgpt finetune` leaves them."""
    wanted = split_model(model, SPANS)
    path = model / "lit_model.pth"
    torch.save({"model": torch.load(path)}, path)
    assert split_model(model, SPANS).files == wanted.files


def test_a_manifest_is_readable_json(model: Path) -> None:
    manifest = split_model(model, SPANS)
    data = json.loads((chunks_folder(model, 3) / "manifest.json").read_text())
    assert data["format_version"] == 3 and data["spans"] == [[0, 1], [1, 3], [3, 6]]
    assert isinstance(manifest, Manifest)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "n_layer: [", "n_layer: x\nn_embd: 3", "surprise: 1", "n_embd: 10\nn_head: 3"]
)
def test_a_damaged_configuration_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="model_config"):
        load_config(tmp_path)


@pytest.mark.parametrize("changes", [{"n_expert": 10**9}, {"head_size": 2**30}, {"n_layer": 10**7}, {"n_layer": -1}])
def test_a_configuration_that_would_take_all_memory_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="not within 0 and"):
        config_from_dict(BASE | {"mlp_class_name": "LLaMAMoE", "n_expert_per_token": 2, "n_expert": 4} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_expert": 0},
        {"n_expert_per_token": 0},
        {"n_expert_per_token": 5},
        {"n_topk_groups": 3},
        {"n_topk_groups": None},
        {"n_topk_scores_per_group": 0},
    ],
)
def test_a_router_that_chooses_more_than_there_is_is_refused(changes: dict[str, Any]) -> None:
    fields = BASE | TRAITS["mixture of experts, grouped router"]
    assert config_from_dict(fields).n_expert == 4
    with pytest.raises(CheckpointError, match="not a configuration that litgpt can run"):
        config_from_dict(fields | changes)


def test_latent_attention_is_refused_by_name(tmp_path: Path) -> None:
    latent = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    values = {**BASE, "n_query_groups": 4, "latent_attention": latent}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(CheckpointError, match="latent attention"):
        load_config(tmp_path)


def test_the_models_of_a_folder_are_found(tmp_path: Path) -> None:
    for name in ("b/two", "a/one"):
        make_model(tmp_path / name)
    assert find_models(tmp_path) == [tmp_path / "a" / "one", tmp_path / "b" / "two"]
    assert find_models(tmp_path / "nowhere") == []


# ---- whether chunks were made from the model that is there


def put_another_model(model: Path, mtime_ns: int) -> None:
    """Replace the whole model by one of the same size, with a time of its own."""
    other = make_model(model.with_name("other"), seed=1)
    shutil.copyfile(other / "lit_model.pth", model / "lit_model.pth")
    os.utime(model / "lit_model.pth", ns=(mtime_ns, mtime_ns))


def test_chunks_of_another_model_do_not_count_however_old_its_file_is(model: Path) -> None:
    manifest = split_model(model, SPANS)
    assert is_fresh(model, manifest)
    put_another_model(model, mtime_ns=0)
    assert not is_fresh(model, manifest)


@pytest.mark.parametrize("seconds", [-1000, 1000])
def test_a_model_that_was_only_copied_is_read_once_to_find_out(
    seconds: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = split_model(model, SPANS)
    mtime_ns = (model / "lit_model.pth").stat().st_mtime_ns + seconds * 10**9
    os.utime(model / "lit_model.pth", ns=(mtime_ns, mtime_ns))
    assert is_fresh(model, manifest)
    monkeypatch.delattr("mdi.checkpoint.chunks.open_weights")
    known = read_manifest(chunks_folder(model, len(SPANS)))
    assert known is not None and known.source is not None and known.source.mtime_ns == mtime_ns
    assert is_fresh(model, known)


def test_chunks_of_a_model_that_is_damaged_by_now_do_not_count(model: Path) -> None:
    manifest = split_model(model, SPANS)
    (model / "lit_model.pth").write_bytes(b"x" * 1000)
    assert not is_fresh(model, manifest)


def test_chunks_of_an_earlier_version_are_written_anew(model: Path) -> None:
    split_model(model, SPANS)
    path = chunks_folder(model, len(SPANS)) / "manifest.json"
    data = json.loads(path.read_text())
    del data["source"]
    path.write_text(json.dumps(data | {"format_version": 1}))
    folder = open_folder(model, len(SPANS))
    assert folder.ring_manifest(len(SPANS)) is None
    assert folder.with_chunks(SPANS, None).ring_manifest(len(SPANS)) == read_manifest(path.parent)


def test_a_ring_runs_the_model_that_is_there(model: Path, tmp_path: Path) -> None:
    prompts = [[1, 2, 3], [4, 5]]
    with ring_of(2, tmp_path / "cache") as ring:
        before = ring.generate(model, prompts)
        put_another_model(model, mtime_ns=0)
        expected = ring.generate(model.with_name("other"), prompts)
        assert ring.generate(model, prompts) == expected != before
