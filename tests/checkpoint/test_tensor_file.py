"""Files of tensors are data: what they declare is checked, and nothing in them ends the process."""

import gc
import os
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from litgpt.utils import incremental_save

from mdi.checkpoint import tensor_file
from mdi.checkpoint.tensor_file import READ_BYTES, TORCH, TensorFile, open_weights
from mdi.errors import CheckpointError
from support.paths import ROOT

Tensors = dict[str, torch.Tensor]


def saved(value: object, path: Path, **options: object) -> Path:
    torch.save(value, path, **options)  # type: ignore[arg-type]
    return path


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_weights(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


# ---- what is read


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_those_that_were_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    whole = torch.arange(24).to(dtype).view(4, 6)
    tensors = {"whole": whole, "part": whole[1:3], "scalar": whole[0, 1], "none": whole[:0], "column": whole[:, :1][:1]}
    weights = open_weights(saved(tensors, tmp_path / "x.pth"))
    assert list(weights) == list(tensors)
    for name, tensor in tensors.items():
        assert weights.meta[name].shape == tensor.shape and weights.meta[name].is_meta
        assert weights[name].dtype == dtype and torch.equal(weights[name], tensor)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_state_dicts_of_modules_are_read_in_every_protocol(protocol: int, tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 5)
    as_parameters = {"parameter": module.weight, **module.state_dict(keep_vars=True)}
    for value in (module.state_dict(), as_parameters):
        weights = open_weights(saved(value, tmp_path / "x.pth", pickle_protocol=protocol))
        assert torch.equal(weights["weight"], module.weight) and torch.equal(weights["bias"], module.bias)


def test_files_of_litgpts_saver_are_read(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    with incremental_save(tmp_path / "x.pth") as saver:
        saver.save({"early": saver.store_early(tensor), "late": tensor + 1})
    weights = open_weights(tmp_path / "x.pth")
    assert torch.equal(weights["early"], tensor) and torch.equal(weights["late"], tensor + 1)


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A module after one step, so that the optimizer has a state."""
    module = torch.nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    return module, optimizer


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_the_checkpoints_of_litgpts_training_are_read(prefix: str, tmp_path: Path) -> None:
    """`litgpt finetune` saves the model alone, `litgpt pretrain` and each step of both also what it takes to go on."""
    module, optimizer = trained()
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    progress = {
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict(),
        "train_dataloader": torch.utils.data.DataLoader([1, 2, 3]),
        "hparams": {"out_dir": tmp_path, "devices": {1, 2}, ("a", 1): Counter("aab")},
        "iter_num": 7,
    }
    for value in ({"model": state}, {"model": state} | progress):
        weights = open_weights(saved(value, tmp_path / "x.pth"))
        assert list(weights) == ["weight", "bias"]
        assert torch.equal(weights["weight"], module.weight) and torch.equal(weights["bias"], module.bias)


class Payload:
    """An object whose loading touches a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_nothing_beside_the_model_of_a_checkpoint_is_executed(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    value = {"model": {"a": torch.ones(2)}, "optimizer": {"state": [Payload(proof)]}}
    weights = open_weights(saved(value, tmp_path / "x.pth"))
    assert torch.equal(weights["a"], torch.ones(2)) and not proof.exists()
    assert "it refers to " in error_of(saved({"model": {"a": Payload(proof)}}, tmp_path / "x.pth"))
    assert not proof.exists()


def test_a_tensor_of_two_names_is_read_once_while_somebody_holds_it(tmp_path: Path) -> None:
    table = torch.randn(100, 10)
    n_read: list[int] = []
    path = saved({"a": table, "b": table, "c": table.clone()}, tmp_path / "x.pth")
    weights = open_weights(path, n_read.append)
    assert weights.meta["a"] is weights.meta["b"] is not weights.meta["c"]
    assert sum(n_read) == 0
    held = weights["a"]
    assert weights["b"] is held and weights["c"] is not held
    assert sum(n_read) == 2 * table.nbytes


def test_progress_is_told_for_every_piece_and_may_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "READ_BYTES", 1000)
    path, steps = saved({"a": torch.zeros(600)}, tmp_path / "x.pth"), list[int]()
    assert torch.equal(open_weights(path, steps.append)["a"], torch.zeros(600))
    assert steps == [0, 1000, 1000, 400]
    assert READ_BYTES <= 16 << 20

    def stop(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_weights(path, stop)["a"]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(6)}, tmp_path / "x.pth")
    (tmp_path / "bad.pth").write_bytes(b"no archive")
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(5):
        open_weights(path)["a"]
        error_of(tmp_path / "bad.pth")
    gc.collect()  # what `pytest.raises` caught holds the frames that it came through
    assert len(os.listdir("/proc/self/fd") if before else []) <= len(before)


# ---- attacks


def quantized() -> torch.Tensor:
    return torch._make_per_channel_quantized_tensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(2),
                                                    torch.zeros(2, dtype=torch.long), 0)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: torch.zeros(1).expand(750_000_000), "declares sizes that the file does not have"),
        (lambda: torch.zeros(1).expand(1000, 1000, 1_000_000), "declares sizes that the file does not have"),
        (lambda: torch.zeros(1).expand(100), "is not contiguous"),
        (lambda: torch.zeros(4, 6).t(), "is not contiguous"),
        (lambda: torch.zeros(2, dtype=torch.complex64), "is of the kind 'ComplexFloatStorage'"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "conjugated or negated"),
        (lambda: torch._neg_view(torch.zeros(2)), "conjugated or negated"),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "refers to"),
        (quantized, "refers to"),
        (lambda: torch.zeros(2, 2).to_sparse(), "refers to"),
        (lambda: torch.zeros(2, device="meta"), "refers to"),
        (lambda: torch.zeros(2, dtype=torch.float8_e4m3fn), "refers to|is of the kind"),
        (lambda: torch.zeros(*[1] * 9), "9 dimensions"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_only_dense_contiguous_plain_tensors_are_read(
    make: Callable[[], torch.Tensor], problem: str, tmp_path: Path
) -> None:
    text = error_of(saved({"a": make()}, tmp_path / "x.pth"))
    assert problem.partition("|")[0] in text or problem.rpartition("|")[2] in text


@pytest.mark.parametrize(
    "name", ["", "a b", "a\nb", "a\0b", "../a", "a/b", "\udcff", "ä", "a" * 257, "a float32 [1] 00\nb"]
)
def test_names_are_of_a_fixed_alphabet(name: str, tmp_path: Path) -> None:
    assert "a tensor is called" in error_of(saved({name: torch.zeros(1)}, tmp_path / "x.pth"))


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(1)], {"a": [torch.zeros(1)]}, {"a": 1}, {1: torch.zeros(1)}, torch.zeros(1), {"a": {}}, None,
        {"model": {1: torch.zeros(1)}}, {"model": [torch.zeros(1)]}, {"model": {"a": 1}},
        {"model": {"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)}},
    ],
)  # fmt: skip
def test_only_named_tensors_are_read(value: object, tmp_path: Path) -> None:
    assert "damaged, or not a file of torch.save" in error_of(saved(value, tmp_path / "x.pth"))


def test_views_do_not_add_up_to_more_than_the_file(tmp_path: Path) -> None:
    table = torch.zeros(10_000)
    tensors = {f"view{i}": table[i:] for i in range(100)}
    assert "its tensors are larger than the file" in error_of(saved(tensors, tmp_path / "x.pth"))


def test_the_number_of_tensors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "MAX_TENSORS", 2)
    assert "3 tensors, more than 2" in error_of(saved(dict.fromkeys("abc", torch.zeros(1)), tmp_path / "x.pth"))


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **options: int) -> Path:
    """The archive `source` with other records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", **options) as new:  # type: ignore[call-overload]
        for name in old.namelist():
            if (data := change(name, old.read(name))) is not None:
                new.writestr(name, data)
    return target


@pytest.mark.parametrize(
    ("change", "options", "problem"),
    [
        (lambda name, data: data, {"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        (lambda name, data: None if "/data/" in name else data, {}, "the record data/0 is missing"),
        (lambda name, data: data[:-1] if "/data/" in name else data, {}, "399 bytes are stored where 400"),
        (lambda name, data: b"big" if name.endswith("byteorder") else data, {}, "the byte order b'big'"),
        (lambda name, data: None if "data.pkl" in name else data, {}, "0 records data.pkl"),
        (lambda name, data: data.replace(b"FloatStorage", b"SnoatStorage"), {}, "of the kind 'SnoatStorage'"),
        (lambda name, data: data.replace(b"torch._utils", b"torch._elsewhere"), {}, "it refers to 'torch._else"),
    ],
)  # fmt: skip
def test_an_archive_of_other_records_is_refused(
    change: Callable[[str, bytes], bytes | None], options: dict[str, int], problem: str, tmp_path: Path
) -> None:
    source = saved({"a": torch.zeros(100)}, tmp_path / "source.pth")
    assert problem in error_of(rewritten(source, tmp_path / "x.pth", change, **options))


@pytest.mark.parametrize("offset", [1, 10**6, 2**32 - 1])
def test_a_record_that_the_directory_places_elsewhere_is_refused(offset: int, tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(100)}, tmp_path / "x.pth")
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2", 0, data.rindex(b"/data/0"))
    data[entry + 42 : entry + 46] = struct.pack("<I", offset)
    path.write_bytes(data)
    assert "damaged, or not a file of torch.save" in error_of(path)


def test_a_directory_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    """A sparse file that says its directory has 4 GB."""
    path, size = tmp_path / "x.pth", 0xFFFFFFF0
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0))
    assert f"a directory of {size} bytes" in error_of(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x.pth")
    assert "not a file" in error_of(tmp_path / "x.pth")


def test_a_file_that_is_cut_short_under_the_program_is_one_line(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(1000), "b": torch.zeros(100_000)}, tmp_path / "x.pth")
    weights = open_weights(path)
    os.truncate(path, 100_000)
    assert torch.equal(weights["a"], torch.zeros(1000))
    with pytest.raises(CheckpointError, match=r"x\.pth: damaged: it was cut short while it was read"):
        weights["b"]


def test_a_file_that_is_replaced_or_removed_meanwhile_is_read_to_its_end(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(10)}, tmp_path / "x.pth")
    file = TensorFile(path, TORCH)
    saved({"a": torch.zeros(20)}, tmp_path / "new.pth").replace(path)
    path.unlink()
    assert torch.equal(file.read("a"), torch.arange(10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_five_hundred_damages_are_values_or_one_line(seed: int, tmp_path: Path) -> None:
    """In a process of its own, so that one that dies of a signal fails the test."""
    saved({f"h.{i}.weight": torch.randn(6, 5) for i in range(4)}, tmp_path / "whole.pth")
    command = [sys.executable, "-c", _DAMAGES, str(tmp_path), str(seed)]
    paths = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    result = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    n_values, n_errors = map(int, result.stdout.split())
    assert n_values + n_errors == 500 and min(n_values, n_errors) > 20


_DAMAGES = """
import random, sys
from pathlib import Path
from fuzz.mutations import change_archive, change_bytes
from mdi.checkpoint.digests import digest_of
from mdi.checkpoint.tensor_file import open_weights
from mdi.errors import MdiError

folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
whole, n_values, n_errors = (folder / "whole.pth").read_bytes(), 0, 0
for _ in range(500):
    in_pickle = lambda data: change_bytes(data, rng)
    changed = change_archive(whole, rng, "data.pkl", in_pickle) if rng.random() < 0.5 else change_bytes(whole, rng)
    (folder / "x.pth").write_bytes(changed)
    try:
        digest_of(open_weights(folder / "x.pth"))
        n_values += 1
    except MdiError as exc:
        assert "\\n" not in str(exc) and "x.pth" in str(exc), exc
        n_errors += 1
print(n_values, n_errors)
"""
