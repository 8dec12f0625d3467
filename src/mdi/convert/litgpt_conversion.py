"""litgpt's conversion of weights in Hugging Face format, as this program runs it.

It executes no pickle and keeps memory flat; what litgpt prints and draws is replaced by one bar of ours, and an error
becomes one line. Importing this module imports lightning.
"""

import contextlib
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litgpt.scripts.convert_hf_checkpoint as litgpt_convert
import torch
from litgpt.utils import incremental_save

from mdi.checkpoint.tensor_file import Advance
from mdi.checkpoint.weights import MODEL_FILE, write_errors
from mdi.convert.weight_files import open_weight_file
from mdi.errors import CheckpointError
from mdi.files import native_path
from mdi.model.litgpt_modules import Config
from mdi.model.tensors import TORCH_DTYPES, mapped_empty
from mdi.progress import progress_bar
from mdi.strings import one_line

_EMBEDDING, _HEAD = "transformer.wte.weight", "lm_head.weight"


def run_conversion(folder: Path, config: Config, dtype: str | None, *, tied: bool) -> None:
    """Write lit_model.pth from the weight files in `folder`, by litgpt's conversion for the name of `config`.

    `dtype` is one of `DTYPES`, None for the stored one; `tied` says whether the head is the embedding.
    Raises `CheckpointError` for files that cannot be converted, `StorageError` where `folder` cannot be written.
    """
    target = folder / MODEL_FILE
    target.unlink(missing_ok=True)
    total_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    try:
        with (
            write_errors(target),
            warnings.catch_warnings(),
            progress_bar(total_bytes, f"converting {folder.name.removesuffix('.partial')}", "B") as advance,
            _hooked(config, TORCH_DTYPES[dtype] if dtype else None, tied, advance),
        ):
            warnings.simplefilter("ignore")
            litgpt_convert.convert_hf_checkpoint(folder.absolute(), model_name=config.name)
    except KeyError as exc:
        raise CheckpointError(
            f"{folder}: litgpt's conversion for {config.name} stumbles over the tensor {exc.args[0]}: "
            "choose another --model-name"
        ) from exc
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as exc:
        raise CheckpointError(f"{folder} cannot be converted as {config.name}: {one_line(exc)}") from exc


class _Saver:
    """Wraps litgpt's `incremental_save`: casts on the way to the file, and stores no more than the tensor itself."""

    def __init__(self, saver: Any, dtype: torch.dtype | None) -> None:
        self._saver = saver
        self._dtype = dtype

    def store_early(self, tensor: torch.Tensor) -> Any:
        dtype = self._dtype if self._dtype and tensor.is_floating_point() else tensor.dtype
        if dtype != tensor.dtype or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = mapped_empty(tensor.shape, dtype).copy_(tensor)
        return self._saver.store_early(tensor)


class _StoredTensors(UserDict[str, Any]):
    """A view of litgpt's growing state dict that writes each tensor to the file as it is assigned."""

    def __init__(self, state: dict[str, Any], saver: _Saver) -> None:
        super().__init__()
        self.data = state
        self._saver = saver

    def __setitem__(self, name: str, value: Any) -> None:
        self.data[name] = self._saver.store_early(value) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _hooked(config: Config, dtype: torch.dtype | None, tied: bool, advance: Advance) -> Iterator[None]:
    """While it lasts, litgpt converts to `config` in flat memory, and in silence but for `advance`.

    It takes `config` for the entry of its table with that name, and reads each tensor when it needs it, and writes it
    at once, cast to `dtype`. Left alone it keeps each layer's joined q, k, v (for Phi-3 the whole MLP too) until the
    last file is read: 13 GB for a 70B model.

    It replaces functions of litgpt's module because there is no other way in: `convert_hf_checkpoint` picks the copy
    function for a family itself and takes no hook, and with a copy of that choice we would have to follow each family
    that litgpt adds. The functions share one signature, (..., state_dict, hf_weights, saver=..., dtype=...), so one
    wrapper serves all; a change of it fails in every conversion test.
    """
    copies = {name: value for name, value in vars(litgpt_convert).items() if name.startswith("copy_weights_")}
    replacements: dict[str, Any] = {name: _storing(copy, dtype, tied) for name, copy in copies.items()}
    replacements |= dict.fromkeys(("load_safetensors", "lazy_load"), partial(open_weight_file, advance=advance))
    replacements["Config"] = SimpleNamespace(from_name=lambda _name: config)
    replacements["incremental_save"] = lambda name: incremental_save(native_path(name))
    # Standard output cannot be replaced instead: it is that of other threads too.
    replacements |= {"print": _say_nothing, "pprint": _say_nothing, "tqdm": _NoBar}
    module = vars(litgpt_convert)
    before = {name: module[name] for name in replacements if name in module}
    module.update(replacements)
    try:
        yield
    finally:
        for name in replacements.keys() - before.keys():  # it took the built-in function of this name
            del module[name]
        module.update(before)


def _say_nothing(*_args: object, **_options: object) -> None:
    """In place of `print` and of what draws a bar."""


class _NoBar:
    """In place of `tqdm`, which would draw on a terminal that is ours, and starts a thread."""

    n = 100.0  # percent: nothing is left to be drawn
    update = set_description = close = __init__ = __exit__ = _say_nothing

    def __enter__(self) -> "_NoBar":
        return self


def _storing(copy: Callable[..., None], dtype: torch.dtype | None, tied: bool) -> Callable[..., None]:
    def run(*args: Any, saver: Any, **options: Any) -> None:
        *fixed, state, weights = args
        own = _Saver(saver, dtype)
        copy(*fixed, _StoredTensors(state, own), weights, **(options | {"saver": own, "dtype": None}))
        if tied and _EMBEDDING in state:  # litgpt does so for some families
            state.setdefault(_HEAD, state[_EMBEDDING])

    return run
