"""What nodes of tests say of themselves."""

from dataclasses import replace

from mdi.control.status import NodeState, Ready, SecondaryStatus, StarterStatus
from mdi.ids import Rank
from mdi.model.span import Span
from mdi.work import Work

IDLE = SecondaryStatus(
    version="0.1.0",
    state=NodeState.IDLE,
    device="cpu",
    dtype="float32",
    own_dtype=None,
    quantize=None,
    run=None,
    epoch=None,
    model=None,
    span=None,
    peak_memory_bytes=1 << 30,
    free_memory_bytes=None,
    starter=None,
    rank=None,
    wire_dtype=None,
    messages=0,
    last_error="größer <b> & 'so'",
)
READY = Ready(
    SecondaryStatus(
        version="0.1.0",
        state=NodeState.READY,
        device="cuda:1",
        dtype="bfloat16",
        own_dtype="bfloat16",
        quantize="int8",
        run=2**63 + 5,
        epoch=2**63 + 5,
        model="org/tiny",
        span=Span(2, 4),
        peak_memory_bytes=1 << 30,
        free_memory_bytes=1 << 33,
        starter="127.0.0.1:8088",
        rank=Rank(1),
        wire_dtype="bfloat16",
        messages=5,
        last_error="",
    )
)
STARTING = StarterStatus(
    version="0.1.0",
    state=NodeState.STARTING,
    device="cpu",
    dtype="float32",
    own_dtype=None,
    quantize=None,
    run=5,
    epoch=0,
    model="org/tiny",
    span=Span(0, 2),
    peak_memory_bytes=1 << 30,
    free_memory_bytes=1 << 33,
    members=["starter", "secondary 0"],
    samples=3,
    tokens=0,
    recoveries=0,
)
RUNNING_STARTER = replace(
    STARTING,
    state=NodeState.RUNNING,
    weights="none",
    weights_bytes=1 << 20,
    memory_bytes=1 << 29,
    numerics="native-1:float32",
    waiting=2,
    work=Work(compute_s=3.0, transfer_s=0.5, idle_s=1.5, rows=600),
)
