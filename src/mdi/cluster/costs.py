"""What each layer and the head cost in a step: what splits are balanced by."""

from collections.abc import Sequence

import torch

from mdi.cluster.partition import Load
from mdi.formats import Mode
from mdi.model.architecture import ModelConfig, architecture_of
from mdi.model.quant import weight_bytes
from mdi.model.shapes import head_shapes, layer_shapes

POSITIONS = 256  # in a sample's slot, taken as typical
TOKEN = 10_000_000  # for the starter to choose a token and to tell it: some 40 us, whatever the model


def load_of(config: ModelConfig, mode: Mode, shares: Sequence[float]) -> Load:
    """The cost of each layer and of the head, for nodes with these shares of the work.

    The unit is a product of one row with one 8-bit weight. A weight costs as many of them as it has bytes: 4 in
    floating point, all of which the native kernels compute in float32. For each element of the heads, attention costs
    12 at each position, and for each element of a row, norms, rounding and sums cost 450. The head is a product, and a
    `TOKEN` for each row, which counts no more than the product: in a model so small, every node takes longer for its
    messages, which are not counted.

    Fitted to steps of 8 rows by the native kernels on one core (AMD EPYC, AVX-512 VNNI, 2026-11-27). In int8, int4
    and float32 a layer of SmolLM2-135M took 189, 155 and 663 us at position 255, one of the TinyLlama-1.1B shape 1,590,
    1,281 and 6,588 us, and the head of SmolLM2 as long as 5.7, 7.1 and 7.5 of its layers, without choosing. With fewer
    rows the head costs more layers (8.2 for one row in int8), with more rows and with longer contexts fewer.
    """
    attention = 12 * POSITIONS * config.n_head * config.head_size
    besides = attention + 450 * config.n_embd
    head = architecture_of(config).head_path + "weight"
    head_product = _product_cost({head: head_shapes(config)[head]}, mode)
    return Load(
        [_product_cost(shapes, mode) + besides for shapes in layer_shapes(config)],
        head_product + min(TOKEN, head_product),
        shares,
    )


def _product_cost(shapes: dict[str, torch.Size], mode: Mode) -> int:
    return sum(weight_bytes(name, shape, torch.float32, mode) for name, shape in shapes.items())
