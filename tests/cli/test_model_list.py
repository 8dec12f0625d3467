"""Listing and removing prepared models."""

from pathlib import Path

import pytest

from mdi.checkpoint import folder as model_folder
from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.folder import find_folder
from mdi.cli.model_list import list_models, remove_model
from mdi.errors import ConfigError
from mdi.model.span import spans_of
from support.models import make_model


def test_the_list_says_what_is_prepared_and_what_has_a_short_name(tmp_path: Path) -> None:
    assert "nothing yet" in list_models(tmp_path)
    folder = make_model(tmp_path / "org" / "one")
    split_model(folder, spans_of([3, 3]))
    split_model(folder, spans_of([2, 2, 2]), "bfloat16", quantization="int8")
    damaged = make_model(tmp_path / "org" / "two")
    (damaged / "lit_model.pth").write_bytes(b"x")
    lines = list_models(tmp_path).splitlines()
    chunks = "chunks: 2nodes (float32), 3nodes-bfloat16-int8 (bfloat16, int8)"
    assert lines[1].startswith("  org/one: 0.") and lines[1].endswith(f" MB, float32; {chunks}")
    assert "org/two" in lines[2] and "damaged" in lines[2]
    assert any(line.split()[:2] == ["tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0,"] for line in lines)


def test_a_model_is_removed_by_its_name(tmp_path: Path) -> None:
    for name in ("a/one", "a/two", "b/two"):
        make_model(tmp_path / name)
    with pytest.raises(ConfigError, match=r"--remove two: more than one model in .*: a/two, b/two"):
        remove_model(tmp_path, "two")
    for name in ("three", "..", "a", "", "../one"):
        with pytest.raises(ConfigError, match=r"no such model in .*: a/one, a/two, b/two"):
            remove_model(tmp_path, name)
    assert remove_model(tmp_path, "b/two") == tmp_path / "b" / "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    remove_model(tmp_path, "one")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["two"]


def test_a_linked_model_loses_its_link_alone(tmp_path: Path) -> None:
    real = make_model(tmp_path / "real")
    (tmp_path / "root" / "local").mkdir(parents=True)
    (tmp_path / "root" / "local" / "mine").symlink_to(real)
    remove_model(tmp_path / "root", "mine")
    assert (real / "lit_model.pth").is_file() and not (tmp_path / "root" / "local").exists()


def test_the_only_model_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "CHECKPOINTS_DIR", tmp_path)
    with pytest.raises(ConfigError, match="no model given; prepare one"):
        find_folder(None)
    one = make_model(tmp_path / "org" / "one")
    assert find_folder(None) == one
    two = make_model(tmp_path / "org" / "two")
    with pytest.raises(ConfigError, match=f"no model given; choose one of these with --ckpt: {one}, {two}"):
        find_folder(None)
    assert find_folder(Path("org/two")) == two
    with pytest.raises(ConfigError, match="org/three: no prepared model there"):
        find_folder(Path("org/three"))
