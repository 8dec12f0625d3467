"""What oneDNN keeps of the numbers of rows that it has met is bounded."""

import json
import platform
from pathlib import Path

import pytest

from mdi.model.linear import ROW_STEP
from support.scripts import Scripts

# Run in a process of its own: the limits are read once in its life.
PROGRAM = f"""
import ctypes, json
import torch
from mdi.model.backends.select import make_head, make_span_engine
from mdi.model.linear import PackedLinear, PlainLinear
from mdi.model.runner import StageRunner

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo

def growth_bytes(layers, dtype, counts):
    before = mallinfo2().uordblks
    for n_rows in counts:
        for layer, n_inputs in layers:
            layer(torch.zeros(n_rows, n_inputs, dtype=dtype))
    return mallinfo2().uordblks - before

StageRunner(torch.device("cpu"), make_span_engine, make_head)
shapes = [(64, 32), (32, 32), (96, 32), (32, 48)]
packed = [(PackedLinear(torch.randn(shape), None), shape[1]) for shape in shapes]
plain = [(PlainLinear(torch.randn(shape).bfloat16(), None), shape[1]) for shape in shapes]
growth = {{}}
for name, layers, dtype in (("float32", packed, torch.float32), ("bfloat16", plain, torch.bfloat16)):
    growth_bytes(layers, dtype, range(1, 17))
    growth[name] = growth_bytes(layers, dtype, range(24, 129, {ROW_STEP}))
print(json.dumps(growth))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc what is allocated")
def test_numbers_of_rows_that_are_met_later_take_no_more_memory(scripts: Scripts, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = scripts.run(str(program))
    assert result.code == 0, result.stderr
    growth = json.loads(result.stdout)
    assert all(abs(n_bytes) < 5e6 for n_bytes in growth.values()), growth  # without limits more than 30 MB
