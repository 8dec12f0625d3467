"""What a user typed: names, copies in a Hugging Face cache, and folders that are no model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mdi.convert.sources import check_present, check_source, find_cached, local_source
from mdi.errors import CheckpointError
from support.hf_folders import make_hf_folder, put_into_cache

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_hf_folder(tmp_path / "minute")


def name_of(path: Path) -> tuple[str, str | None]:
    source = local_source(path)
    return source.name, source.repo_id


def test_a_copy_in_the_cache_has_the_name_of_its_repo(cache: Path, folder: Path, tmp_path: Path) -> None:
    snapshot = put_into_cache(cache, "org/tiny-model", folder)
    assert name_of(snapshot) == ("org/tiny-model", "org/tiny-model")
    assert local_source(cache / "models--org--tiny-model").path == snapshot
    (tmp_path / "mine").symlink_to(snapshot)
    assert name_of(tmp_path / "mine") == ("mine", "org/tiny-model")


def test_a_folder_has_its_own_name_and_a_link_the_one_of_the_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_of(folder) == ("minute", None)
    (tmp_path / "mine").symlink_to(folder)
    assert name_of(tmp_path / "mine") == ("mine", None)
    monkeypatch.chdir(folder)
    assert name_of(Path(".")) == ("minute", None)


def test_a_repo_is_found_in_the_cache_where_all_of_it_is_there(cache: Path, folder: Path) -> None:
    assert find_cached("org/minute") is None
    snapshot = put_into_cache(cache, "org/minute", folder)
    assert find_cached("org/minute") == snapshot
    assert find_cached("org/other") is None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_part_of_a_repo_in_the_cache_does_not_count(name: str, cache: Path, folder: Path) -> None:
    snapshot = put_into_cache(cache, "org/minute", folder)
    (snapshot / name).resolve().unlink()
    assert find_cached("org/minute") is None


def test_a_copy_without_a_vocabulary_does_not_count(cache: Path, folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    put_into_cache(cache, "org/minute", folder)
    assert find_cached("org/minute") is None


def make_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


def make_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base\x1b"}))


def cut_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/gone")


def name_two_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (make_pointer, r"minute/model\.safetensors: a git-lfs pointer.*`git lfs pull` in .*minute$"),
        (make_adapter, r"minute is an adapter \(LoRA\) for org/base.x1b, not a model: merge the two"),
        (cut_link, r"minute/model\.safetensors: a link to a file that is gone.*fetch it again$"),
        (name_two_shards, r"minute lacks 1 of 2 weight files: model-00002-of-00002\.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "minute has no weights"),
        (lambda folder: (folder / "config.json").unlink(), r"minute has no config\.json"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(spoil: Callable[[Path], None], expected: str, folder: Path) -> None:
    check_source(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=expected):
        check_source(folder)


def test_a_pruned_cache_says_what_to_fetch(cache: Path, folder: Path) -> None:
    snapshot = put_into_cache(cache, "org/minute", folder)
    (snapshot / "model.safetensors").resolve().unlink()
    with pytest.raises(CheckpointError, match=r"run `hf download org/minute`, or prepare org/minute itself"):
        check_source(snapshot)


def test_a_single_file_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"model\.gguf: a git-lfs pointer"):
        check_present(tmp_path / "model.gguf")
