"""Machines that people have, as published, for plans without the machines: estimates, not measurements.

A node is taken to be limited by its memory for few rows and by its arithmetic for many (the roofline of Williams,
Waterman and Patterson, CACM 2009). C = n_embd.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mdi.cluster.network_times import NetworkTimes
from mdi.cluster.planner import LinkCosts
from mdi.cluster.stage_times import PIECE_ROWS, ROWS
from mdi.config.network import NetworkConfig, NodeConfig
from mdi.control.measurement import HeadTime, LayerTime, StageTimes
from mdi.errors import ConfigError
from mdi.formats import KvDtype, Mode
from mdi.model.architecture import ModelConfig
from mdi.model.backends.native.memory import POSITIONS, cache_bytes
from mdi.model.quant import held_bytes
from mdi.model.shapes import kv_bytes, stage_shapes
from mdi.model.span import Span
from mdi.model.tensors import TORCH_DTYPES
from mdi.strings import did_you_mean, quoted

CONTEXTS = (128, 2048)
STORED_DTYPE = "bfloat16"  # as nearly all models are published; native kernels read it as it is
MAX_NODES = 100
REACHED = 0.6  # of a vendor's figures, by a good program: llama.cpp and this one reach 0.5 to 0.75 on CPUs
SYSTEM_BYTES = 0.8e9  # that the system and this program take of a machine's memory


@dataclass(frozen=True)
class DeviceClass:
    """One kind of machine."""

    memory_bytes: float
    bandwidth_bytes_s: float  # of its memory
    flops: float  # multiplications and additions a second, in the dtype it computes in
    dtype: str
    device: str
    message_s: float  # for launching a layer's operations, or a message through C++
    source: str
    is_measured: bool = False  # whether the bandwidth is what a program reached, and not what the vendor tells


_PI4 = "memory: STREAM 5.56 GB/s, sci-pi.org.uk/bench/stream.html; arithmetic: 4 Cortex-A72 x 1.8 GHz x 8"
_PI5 = (
    "memory: 11.4 of 17 GB/s sustained, hellomatik.com/research/hitting-the-memory-wall-30b-moe-raspberry-pi;"
    " arithmetic: 4 Cortex-A76 x 2.4 GHz x 16"
)
_ORIN = (
    "NVIDIA Jetson Orin Nano Series data sheet: memory: 128-bit LPDDR5, {} GB/s; arithmetic: half of {} TOPS INT8 dense"
)
_LAPTOP = "memory: JEDEC {}, two modules of 8 bytes; arithmetic: {}"
_GEFORCE = "memory: NVIDIA's specification of the card; arithmetic: dense tensor cores with sums in float32, {}"

DEVICE_CLASSES: Mapping[str, DeviceClass] = {
    "pi4-4gb": DeviceClass(4e9, 5.56e9, 58e9, "float32", "cpu", 1e-4, _PI4, is_measured=True),
    "pi4-8gb": DeviceClass(8e9, 5.56e9, 58e9, "float32", "cpu", 1e-4, _PI4, is_measured=True),
    "pi5-4gb": DeviceClass(4e9, 11.4e9, 154e9, "float32", "cpu", 1e-4, _PI5, is_measured=True),
    "pi5-8gb": DeviceClass(8e9, 11.4e9, 154e9, "float32", "cpu", 1e-4, _PI5, is_measured=True),
    "pi5-16gb": DeviceClass(16e9, 11.4e9, 154e9, "float32", "cpu", 1e-4, _PI5, is_measured=True),
    "orin-nano": DeviceClass(8e9, 68e9, 10e12, "bfloat16", "cuda", 5e-4, _ORIN.format(68, 20)),
    "orin-nano-super": DeviceClass(8e9, 102e9, 16e12, "bfloat16", "cuda", 5e-4, _ORIN.format(102, 33)),
    "laptop-ddr3": DeviceClass(
        8e9, 25.6e9, 150e9, "float32", "cpu", 1e-4, _LAPTOP.format("DDR3-1600 (JESD79-3)", "4 cores x 2.4 GHz x 16")
    ),
    "laptop-ddr4": DeviceClass(
        16e9, 51.2e9, 400e9, "float32", "cpu", 1e-4, _LAPTOP.format("DDR4-3200 (JESD79-4)", "4 cores x 3.1 GHz x 32")
    ),
    "laptop-ddr5": DeviceClass(
        16e9, 89.6e9, 800e9, "float32", "cpu", 1e-4, _LAPTOP.format("DDR5-5600 (JESD79-5)", "8 cores x 3.1 GHz x 32")
    ),
    "rtx3060-12gb": DeviceClass(
        12e9, 360e9, 25e12, "bfloat16", "cuda", 5e-4, _GEFORCE.format("28 multiprocessors x 512 x 1.78 GHz")
    ),
    "rtx3090": DeviceClass(
        24e9, 936e9, 71e12, "bfloat16", "cuda", 5e-4, _GEFORCE.format("Ampere GA102 GPU Architecture whitepaper")
    ),
    "rtx4090": DeviceClass(
        24e9, 1008e9, 165e12, "bfloat16", "cuda", 5e-4, _GEFORCE.format("Ada GPU Architecture whitepaper")
    ),
}
# One way, and bytes a second: 1000BASE-T and 100BASE-TX (IEEE 802.3) less their framing. A home's wireless network is
# far from its nominal rate, and slower to answer: its figures are assumed.
LINK_CLASSES: Mapping[str, LinkCosts] = {
    "gigabit": LinkCosts(2e-4, 117e6),
    "100mbit": LinkCosts(3e-4, 11.7e6),
    "wifi": LinkCosts(2e-3, 15e6),
}
_GROUP = re.compile(r"(?:(\d{1,3})\s*[x×*]\s*)?([\w.-]+)")


def parse_devices(text: str) -> list[str]:
    """The class of each node in `4x pi5-8gb,1x orin-nano`, the starter first. Raises `ConfigError`."""
    names: list[str] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        if match is None or match[2].lower() not in DEVICE_CLASSES:
            word = quoted(group.strip() if match is None else match[2])
            meant = did_you_mean(match[2].lower(), DEVICE_CLASSES) if match else ""
            raise ConfigError(f"--what-if: {word} is none of {', '.join(DEVICE_CLASSES)}{meant}")
        names += [match[2].lower()] * int(match[1] or 1)
    if not 1 <= len(names) <= MAX_NODES:
        raise ConfigError(f"--what-if: from 1 to {MAX_NODES} machines can be planned for, not {len(names)}")
    return names


def network_of(names: list[str]) -> NetworkConfig:
    """A network of such machines, each at an address of its own."""
    nodes = [NodeConfig(f"192.0.2.{index + 1}", 8088, 5088, 5089) for index in range(len(names))]
    return NetworkConfig(nodes[0], tuple(nodes[1:]))


def estimate(
    names: list[str],
    link: str,
    config: ModelConfig,
    mode: Mode,
    dtype: str | None = None,
    kv_dtype: KvDtype | None = None,
) -> NetworkTimes:
    """What such machines would take, all joined by one kind of link."""
    times = tuple(
        _stage_times(DEVICE_CLASSES[name], config, mode, dtype, kv_dtype, has_head=index == 0)
        for index, name in enumerate(names)
    )
    return NetworkTimes(times, [[LINK_CLASSES[link]] * len(names) for _ in names])


def _stage_times(
    device: DeviceClass,
    config: ModelConfig,
    mode: Mode,
    dtype: str | None,
    kv_dtype: KvDtype | None,
    *,
    has_head: bool,
) -> StageTimes:
    computes = dtype or device.dtype
    n_layer = config.n_layer
    shapes = stage_shapes(config, Span(0, n_layer))
    weights_bytes = held_bytes(shapes, TORCH_DTYPES[STORED_DTYPE], mode, "cpu") / n_layer
    n_parameters = sum(shape.numel() for shape in shapes.values()) / n_layer
    position_bytes: float = kv_bytes(config, 1, 1, TORCH_DTYPES[computes])
    if kv_dtype is not None and device.device == "cpu":
        position_bytes = sum(cache_bytes(config, POSITIONS, kv_dtype)) / POSITIONS

    def layer_s(rows: int, context: int) -> float:
        n_slots = 1 if rows == PIECE_ROWS else rows
        return _seconds(device, weights_bytes + n_slots * context * position_bytes, rows * n_parameters)

    layers = [LayerTime(rows, context, layer_s(rows, context)) for context in CONTEXTS for rows in (*ROWS, PIECE_ROWS)]
    n_head = config.padded_vocab_size * config.n_embd
    head_bytes = n_head * weights_bytes / n_parameters
    head = [HeadTime(rows, _seconds(device, head_bytes, rows * n_head)) for rows in ROWS]
    return StageTimes(
        device=device.device,
        dtype=computes,
        mode=mode,
        kv_dtype=kv_dtype,
        threads=1,
        has_kernels=device.device == "cpu",
        layers=tuple(layers),
        head=tuple(head) if has_head else (),
        message_s=device.message_s,
        frame_s=0.0,  # it is a part of that
        disk_read_bytes_s=None,
        disk_write_bytes_s=None,
        free_memory_bytes=int(device.memory_bytes - SYSTEM_BYTES),
    )


def _seconds(device: DeviceClass, n_bytes: float, n_products: float) -> float:
    """What reading and computing take: the longer of the two."""
    read_s = n_bytes / (device.bandwidth_bytes_s * (1.0 if device.is_measured else REACHED))
    return max(read_s, 2 * n_products / (device.flops * REACHED))
