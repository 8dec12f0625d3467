"""Tensor <-> (dtype, shape, buffer), no copies."""

import mmap

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()  # a compiled stage takes other tensors for another case, and compiles again
def from_buffer(buffer: memoryview, dtype: str, n_columns: int) -> torch.Tensor:
    """A (rows, n_columns) tensor over the memory of `buffer`, which must be writable or empty."""
    if not buffer:
        return torch.empty(0, n_columns, dtype=TORCH_DTYPES[dtype])
    return torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype]).view(-1, n_columns)


def to_buffer(tensor: torch.Tensor, dtype: str) -> memoryview:
    """The bytes of `tensor` as `dtype`: its own memory where it is contiguous, on the CPU and of that dtype."""
    if not tensor.numel():
        return memoryview(b"")
    tensor = tensor.detach().to("cpu", TORCH_DTYPES[dtype]).contiguous()
    return tensor.view(torch.uint8).numpy().data.cast("B")


def mapped_empty(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in memory of its own, zeros so far, which goes back to the system as soon as it is freed.

    From the heap, glibc kept 738 MB of a 956 MB model that was made and freed tensor by tensor: the holes
    do not fit the next aligned block.
    """
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    # Private, since the shared memory that is `mmap`'s default takes a third longer to be filled.
    memory = mmap.mmap(-1, shape.numel() * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def zeros(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of zeros; on the CPU its memory is not touched before something is written to it."""
    if device.type == "cpu":
        return mapped_empty(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)
