"""What a session does when more than one thing happens at once."""

import contextlib
import gc
import logging
import os
import shutil
import socket
import threading
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.chunks import split_model
from mdi.checkpoint.config import load_config
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.folder import open_folder
from mdi.checkpoint.manifest import chunk_name, chunks_folder
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy
from mdi.control.session import SessionSpec
from mdi.control.status import NodeState
from mdi.engine.sample import Outcome, Sample, Sink, discard
from mdi.errors import CheckpointError, ControlError, RingBroken
from mdi.ids import Rank
from mdi.model.backends.native.library import UnavailableError, load_library
from mdi.model.backends.native.memory import cache_bytes
from mdi.model.span import spans_of
from mdi.net.access import THIS_MACHINE
from mdi.nodes.secondary import Secondary
from mdi.nodes.sources import WeightSources
from mdi.nodes.starter import Starter
from support.models import make_model
from support.rings import ANY_PORT, Ring, ring_of, starter_for
from support.scripts import wait_until


@pytest.mark.slow
def test_many_samples_that_end_at_once_do_not_fill_the_inbox(tiny: Path, tmp_path: Path) -> None:
    """One prompt for all, as by default: hundreds of forks travel in a burst."""
    with ring_of(3, tmp_path) as ring:
        outputs = ring.generate(tiny, [list(range(20))] * 1500, n_tokens=1)
        assert [len(tokens) for tokens in outputs] == [1] * 1500
        for secondary in ring.secondaries:  # which close their links before they are idle
            wait_until(lambda node=secondary: node.status().state is NodeState.IDLE, 60, "the node is idle")


@contextlib.contextmanager
def starter_of(ring: Ring, folder: Path, sink: Sink = discard, **options: object) -> Iterator[Starter]:
    values = {"dtype": "float32", "keep_nodes": True, "n_tokens": 4, **options}
    arguments = StarterOptions(ckpt=folder, **values)  # type: ignore[arg-type]
    with starter_for(ring.network, arguments, [[1, 2]], sink=sink) as (starter, _):
        yield starter


def spec_of(starter: Starter, folder: Path) -> SessionSpec:
    """What the first secondary receives in the run's first epoch, with the chunks as they are in the folder."""
    supervisor = starter._supervisor
    return supervisor._rendezvous.spec(supervisor.plan, open_folder(folder, 2), Rank(1), epoch=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_starters_dtype_holds_on_nodes_that_were_told_none(tiny: Path, tmp_path: Path, dtype: str) -> None:
    """Whichever of the two the device would take by itself."""
    with ring_of(2, tmp_path, dtype=None) as ring:
        own_choice = ring.secondaries[0].status().dtype
        with starter_of(ring, tiny, dtype=dtype) as starter:
            starter.prepare()
            assert ring.secondaries[0].status().dtype == dtype
            starter.run()
        wait_until(lambda: ring.secondaries[0].status().state is NodeState.IDLE, 60, "the node is idle")
        assert ring.secondaries[0].status().dtype == own_choice


def test_a_node_may_listen_on_all_addresses_and_be_called_by_one(tmp_path: Path) -> None:
    sources = WeightSources(ChunkCache(tmp_path, content_digest))
    with Secondary(replace(ANY_PORT, addr="127.0.0.1", listen="0.0.0.0"), sources) as node:
        assert node._listener.getsockname()[0] == "0.0.0.0"
        assert ControlClient("it", "127.0.0.1", node.http_port, THIS_MACHINE).status().state is NodeState.IDLE


def test_a_nodes_own_dtype_wins_over_the_starters(tiny: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path, dtype="float16") as ring, starter_of(ring, tiny) as starter:
        starter.prepare()
        status = ring.secondaries[0].status()
        assert (status.dtype, status.own_dtype, status.wire_dtype) == ("float16", "float16", "float32")
        starter.run()


@pytest.fixture
def kernels() -> None:
    try:
        load_library()
    except UnavailableError as exc:
        pytest.skip(str(exc))


@pytest.mark.usefixtures("kernels")
def test_the_starters_kv_dtype_holds_on_nodes_that_were_told_none(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ring_of(2, tmp_path) as ring, starter_of(ring, tiny, kv_dtype="int8") as starter:
        starter.prepare()
        status = ring.secondaries[0].status()
        assert status.numerics == starter.status().numerics == "native-1-kv-int8:float32"
        assert status.span is not None
        layer_bytes = sum(cache_bytes(load_config(tiny), starter._supervisor.plan.context, "int8"))
        assert status.cache_bytes == len(status.span) * layer_bytes
        starter.run()
        wait_until(lambda: ring.secondaries[0].status().cache_bytes == 0, 60, "the slots are given back")
    assert "compute differently" not in caplog.text
    with ring_of(2, tmp_path, kv_dtype="float16") as ring, starter_of(ring, tiny, kv_dtype="int8") as starter:
        starter.prepare()
        status = ring.secondaries[0].status()
        assert (status.kv_dtype, status.numerics) == ("float16", "native-1-kv-float16:float32")
        assert "starter: native-1-kv-int8:float32; secondary 0: native-1-kv-float16:float32" in caplog.text
        starter.run()


@pytest.mark.usefixtures("kernels")
def test_nodes_that_compute_differently_are_named_in_one_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ring_of(2, tmp_path, backend="torch") as ring:
        ring.generate(tiny, [[1, 2]])
        assert "compute differently" not in caplog.text
        ring.generate(tiny, [[1, 2]], backend="native")
        (told,) = (record for record in caplog.records if "compute differently" in record.getMessage())
        version = ".".join(torch.__version__.split(".")[:2])
        assert f"(starter: native-1:float32; secondary 0: torch-{version}:float32)" in told.getMessage()
        assert told.levelno == logging.WARNING


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with chunks for two nodes."""
    folder = make_model(tmp_path_factory.mktemp("org") / "split")
    split_model(folder, spans_of([2, 4]))
    return folder


def test_of_two_starters_at_once_the_one_that_lives_gets_the_node(split: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path) as ring, starter_of(ring, split) as starter:
        secondary = ring.secondaries[0]
        living = spec_of(starter, split)
        client = ControlClient("secondary 0", "127.0.0.1", secondary.http_port)
        client.init(living)  # the chunk is missing: the node is idle again
        client.send_chunk(chunks_folder(split, 2) / chunk_name(1), living.chunk_digest)

        def ask(spec: SessionSpec) -> str:
            try:
                return type(client.init(spec)).__name__
            except NodeBusy:
                return "refused"

        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(ask, [living, replace(living, run=2)]))
        assert outcomes[0] == "Ready"
        assert secondary.status().run == living.run


def test_a_node_that_waits_for_a_living_starter_refuses_another_one(split: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path) as ring:
        client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port)
        with starter_of(ring, split) as starter:
            spec = spec_of(starter, split)
            client.init(spec)
            client.send_chunk(chunks_folder(split, 2) / chunk_name(1), spec.chunk_digest)
            client.init(spec)
            with pytest.raises(NodeBusy, match=r"already serves the starter at 127\.0\.0\.1"):
                client.init(replace(spec, run=7))
        assert ring.generate(split, [[1, 2]], n_tokens=2)  # gone: the node is free again


def test_a_starters_chunk_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "org" / "other", seed=1)
    with ring_of(2, tmp_path / "cache") as ring:
        ring.generate(other, [[1, 2]], n_tokens=1)
        chunk = other / "chunks" / "2nodes" / "model_starter.pth"
        with pytest.raises(CheckpointError, match="not the chunk that the manifest"):
            ring.generate(tiny, [[1, 2]], chunk=chunk)


@pytest.mark.slow
def test_a_node_that_is_stopped_for_good_ends_the_run_and_is_named(tiny: Path, tmp_path: Path) -> None:
    """Where nobody can take over: the starter has its chunks, and not the whole model."""
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "tiny", ignore=shutil.ignore_patterns("chunks")))
    with ring_of(3, tmp_path / "cache") as ring:
        ring.generate(folder, [[1, 2]], n_tokens=1)
        (folder / "lit_model.pth").unlink()

        def stop(sample: Sample, outcome: Outcome) -> None:
            if len(sample.tokens) == 5:
                ring.secondaries[0].__exit__(None, None, None)

        with starter_of(ring, folder, stop, n_tokens=100, node_timeout_s=1.0) as starter:
            starter.prepare()
            with pytest.raises(RingBroken, match=r"secondary 0 did not come back within 1 s .*lit_model\.pth"):
                starter.run()


ODD: list[dict[str, object]] = [{"n_head": 0}, {"norm_class_name": "Foo"}, {"n_query_groups": 0}, {"head_size": -1}]


@pytest.mark.parametrize("change", ODD)
def test_an_odd_configuration_is_refused_and_the_node_lives(
    change: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    with ring_of(2, tmp_path) as ring:
        with starter_of(ring, tiny) as starter:
            spec = spec_of(starter, tiny)
            client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port)
            with pytest.raises(ControlError, match="not a configuration that litgpt can run"):
                client.init(replace(spec, config=spec.config | change))
        assert ring.generate(tiny, [[1, 2]], n_tokens=2)


_HOLDERS = (types.TracebackType, types.FrameType, types.GeneratorType, Future, threading.Thread, socket.socket)


@pytest.mark.slow
def test_a_session_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    """Of starters and secondaries in this process: objects, threads and descriptors stay as many."""
    n_sessions = 6
    with ring_of(3, tmp_path) as ring:

        def held_after(n: int) -> Counter[str]:
            for _ in range(n):
                ring.generate(tiny, [[1, 2, 3], [4]], n_tokens=3)
            wait_until(lambda: all(s.status().state is NodeState.IDLE for s in ring.secondaries), 60, "they are idle")
            wait_until(lambda: not _calls(), 60, "calls to nodes have ended")
            return _held()

        held_after(2)  # caches are filled
        before = held_after(1)
        more = held_after(n_sessions) - before
    assert not {what: n for what, n in more.items() if n >= n_sessions}, more


def _calls() -> list[str]:
    """Threads of calls to nodes: one ends a moment after its answer was taken, and holds its session until then."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("call-")]


def _held() -> Counter[str]:
    """Live objects of ours by type, those that hold others' objects, and what the kernel holds for this process."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    counts = Counter(k.__qualname__ for k in kinds if str(k.__module__).startswith("mdi.") or k in _HOLDERS)
    counts["thread"], counts["descriptor"] = threading.active_count(), len(os.listdir("/dev/fd"))
    return counts
