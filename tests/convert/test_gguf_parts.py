"""A model in several GGUF files."""

import shutil
from pathlib import Path

import pytest

from mdi.checkpoint.digests import content_digest
from mdi.convert.gguf.convert import import_gguf, suggested_name
from mdi.convert.gguf.parts import parts_of
from mdi.errors import CheckpointError
from support.gguf_files import byte_level_tokenizer, hyperparameters, tensors, tiny_model, write_gguf, write_parts


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    return write_gguf(tmp_path / "tiny.gguf", architecture, values, tensors(architecture, model))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    architecture, model = tiny_model("llama")
    values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
    (tmp_path / "parts").mkdir()
    return write_parts(tmp_path / "parts", architecture, values, tensors(architecture, model), 3)


def imported(source: Path, folder: Path) -> str:
    """The digest of the weights that an import gives."""
    folder.mkdir()
    import_gguf(source, folder)
    return content_digest(folder / "lit_model.pth")


@pytest.mark.parametrize("given", [0, 2])
def test_any_part_stands_for_the_whole_model(given: int, whole: Path, parts: list[Path], tmp_path: Path) -> None:
    assert parts_of(parts[given]) == parts
    assert imported(parts[given], tmp_path / "a") == imported(whole, tmp_path / "b")
    assert suggested_name(Path("Big-Q4_K_M-00002-of-00003.gguf")) == "Big"


def refusal(part: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        import_gguf(part, part.parent)
    return str(caught.value)


def test_a_part_that_is_missing_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    assert "part 2 of 3 is not beside it: fetch tiny-00002-of-00003.gguf too" in refusal(parts[0])


def test_a_part_under_another_name_is_refused(parts: list[Path]) -> None:
    shutil.copyfile(parts[1], parts[2])
    assert f"{parts[2]}: it says that it is part 2 of 3" in refusal(parts[0])
    alone = parts[0].rename(parts[0].with_name("model.gguf"))
    assert f"{alone}: it says that it is part 1 of 3: give the parts" in refusal(alone)


def test_parts_of_two_models_are_not_joined(parts: list[Path], tmp_path: Path) -> None:
    architecture, model = tiny_model("llama")
    stored = tensors(architecture, model)
    (tmp_path / "fewer").mkdir()
    other = write_parts(tmp_path / "fewer", architecture, {}, dict(list(stored.items())[:-1]), 3)
    shutil.copyfile(other[2], parts[2])
    assert "tensor" in refusal(parts[0]) and "part" in refusal(parts[0])
