"""The compiled kernels as Python sees them: C structures and functions, and the check that they compute correctly."""

import ctypes
import functools
import logging
import platform
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

from mdi.errors import ConfigError, StorageError
from mdi.model.backends.native.compiler import NoCompilerError, library_for, prebuilt_library
from mdi.model.backends.native.instruction_sets import InstructionSet, usable_here
from mdi.strings import one_line

log = logging.getLogger(__name__)

# The name of the arithmetic, which nodes compare. It changes where a kernel gives other bits, on any CPU.
NUMERICS = "native-1"

FLOAT32, BFLOAT16, FLOAT16, INT8, INT4 = range(5)  # enum Type
NO_NORM, RMS_NORM, LAYER_NORM = range(3)  # enum Norm::Kind
SILU, GELU, GELU_TANH, RELU = range(4)  # enum Activation


class Norm(ctypes.Structure):
    """struct Norm of norms.hpp."""

    _fields_ = [("kind", c_int32), ("epsilon", c_float), ("weight", c_void_p), ("bias", c_void_p)]


class Linear(ctypes.Structure):
    """struct Linear of weights.hpp."""

    _fields_ = [
        ("tiles", c_void_p),
        ("bias", c_void_p),
        ("type", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
    ]


class Mlp(ctypes.Structure):
    """struct Mlp of mlp.hpp."""

    _fields_ = [(name, Linear) for name in ("fc_1", "fc_2", "proj")]


class Routing(ctypes.Structure):
    """struct Routing of router.hpp."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in ("n_experts", "n_chosen", "n_groups", "n_chosen_groups", "n_group_scores", "normalizes")
        ),
        ("scale", c_float),
    ]


class Experts(ctypes.Structure):
    """struct Experts of mixture.hpp."""

    _fields_ = [("router", Linear), ("correction", c_void_p), ("mlps", POINTER(Mlp))]


class Shape(ctypes.Structure):
    """struct Shape of span.hpp."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in (
                "n_embd",
                "n_head",
                "n_groups",
                "head_size",
                "n_rotary",
                "parallel_residual",
                "shared_norm",
                "rotates_neighbours",
                "norms_all_heads",
                "cache_type",
                "activation",
            )
        ),
        ("scale", c_float),
        ("cap", c_float),
        ("routing", Routing),
    ]


class Block(ctypes.Structure):
    """struct Block of span.hpp."""

    _fields_ = [
        *((name, Norm) for name in ("norm_1", "norm_2", "post_attention_norm", "post_mlp_norm", "norm_q", "norm_k")),
        *((name, Linear) for name in ("qkv", "attention_proj")),
        ("mlp", Mlp),
        ("experts", Experts),
        ("window", c_int32),
        ("rotary_table", c_int32),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Segment(ctypes.Structure):
    """struct Segment of span.hpp."""

    _fields_ = [("slot", c_int32), ("start", c_int32), ("n", c_int32)]


_SIGNATURES = {
    "mdi_instruction_set": (c_char_p, []),
    "mdi_cache_bytes": (None, [c_int32, c_int, POINTER(c_int64), POINTER(c_int64)]),
    "mdi_packed_bytes": (c_int64, [c_int32, c_int, c_int]),
    "mdi_pack": (None, [c_int32, c_void_p, c_void_p, c_int, c_int, c_void_p]),
    "mdi_span_new": (c_void_p, [POINTER(Shape), POINTER(Block), c_int]),
    "mdi_span_delete": (None, [c_void_p]),
    "mdi_span_set_slots": (c_int, [c_void_p, c_int, c_int, *[POINTER(c_void_p)] * 4]),
    "mdi_span_forward": (c_int, [c_void_p, c_void_p, c_void_p, POINTER(Segment), c_int]),
    "mdi_span_fork": (None, [c_void_p, c_int, c_int, c_int]),
    "mdi_head_new": (c_void_p, [POINTER(Norm), POINTER(Linear)]),
    "mdi_head_delete": (None, [c_void_p]),
    "mdi_head_logits": (c_int, [c_void_p, c_void_p, c_void_p, c_int, c_int]),
    "mdi_head_embed": (None, [c_void_p, c_void_p, c_int, c_void_p]),
    "mdi_map": (c_void_p, [c_int, c_int64, c_int64]),
    "mdi_mapped_data": (c_void_p, [c_void_p]),
    "mdi_mapping_is_lost": (c_int, [c_void_p]),
    "mdi_unmap": (None, [c_void_p]),
    "mdi_n_lost_mappings": (c_int, []),
}


class UnavailableError(Exception):
    """No library can be had here; the text says why."""


def load_library() -> ctypes.CDLL:
    """The kernels for the best instruction set of this CPU that the compiler knows, compiled where they are not yet.

    Raises `UnavailableError`. Either is found out once in the life of this process.
    """
    found = _library_or_reason()
    if isinstance(found, str):
        raise UnavailableError(found)
    return found


@functools.cache
def _library_or_reason() -> ctypes.CDLL | str:
    reason = f"there are no kernels for this CPU ({platform.machine()})"
    for instruction_set in usable_here():
        if (prebuilt := _load_prebuilt(instruction_set)) is not None:
            return prebuilt
        try:
            return load(library_for(instruction_set))
        except NoCompilerError as exc:
            reason = str(exc)
        except (ConfigError, StorageError, UnavailableError) as exc:
            return str(exc)
    return reason


def _load_prebuilt(instruction_set: InstructionSet) -> ctypes.CDLL | None:
    """What came with the installation, if it is for this system: it may have another C library, or be macOS."""
    if (path := prebuilt_library(instruction_set)) is None:
        return None
    try:
        return load(path)
    except UnavailableError as exc:
        log.info("%s; compiling the kernels instead", exc)
        return None


def load(path: Path) -> ctypes.CDLL:
    """A compiled library, once it has computed some products correctly. Raises `UnavailableError`.

    ctypes lets other threads of Python run while one computes in there.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as exc:
        raise UnavailableError(f"{path}: {one_line(exc)}") from exc
    check_products(library)
    return library


def check_products(library: ctypes.CDLL) -> None:
    """Raise `UnavailableError` unless products of every type are right, in sizes that no tile divides.

    All numbers are whole and small, so that every result is exact.
    """
    n_outputs, n_inputs = 40, 72
    weight = torch.arange(n_outputs * n_inputs).view(n_outputs, n_inputs) % 15
    ones = torch.ones(n_outputs, -(-n_inputs // 32), dtype=torch.float16)
    int4 = (weight[:, ::2] | weight[:, 1::2] << 4).to(torch.uint8)
    cases = {
        FLOAT32: (weight.float(), None, weight),
        BFLOAT16: (weight.bfloat16(), None, weight),
        FLOAT16: (weight.half(), None, weight),
        INT8: ((weight - 7).to(torch.int8), ones, weight - 7),
        INT4: (int4, torch.stack((ones, -7 * ones), dim=-1), weight - 7),
    }
    for kind, (data, scales, values) in cases.items():
        packed = torch.zeros(library.mdi_packed_bytes(kind, n_outputs, n_inputs), dtype=torch.uint8)
        pointer = None if scales is None else scales.data_ptr()
        library.mdi_pack(kind, data.data_ptr(), pointer, n_outputs, n_inputs, packed.data_ptr())
        linear = Linear(packed.data_ptr(), None, kind, n_outputs, n_inputs)
        head = library.mdi_head_new(ctypes.byref(Norm()), ctypes.byref(linear))
        for n_rows in range(1, 10):
            x = torch.arange(n_rows * n_inputs).view(n_rows, n_inputs) % 255 - 127
            x[:, ::32] = 127  # so that rows become these very integers
            rows, y = x.float(), torch.empty(n_rows, 64)
            library.mdi_head_logits(head, rows.data_ptr(), y.data_ptr(), n_rows, 1)
            if not torch.equal(y[:, :n_outputs].long(), x @ values.T):
                name = library.mdi_instruction_set().decode()
                raise UnavailableError(f"the kernels for {name} compute wrong products (type {kind}, {n_rows} rows)")
        library.mdi_head_delete(head)
