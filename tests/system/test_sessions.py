"""What a session does when more than one thing happens at once."""

import queue
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mdi.cluster.plan import plan_job
from mdi.config.options import StarterOptions
from mdi.control.client import ControlClient
from mdi.control.protocol import NodeBusy
from mdi.control.session import SessionSpec
from mdi.control.status import NodeState
from mdi.engine.engine import Observer
from mdi.errors import CheckpointError, ControlError, RingBroken
from mdi.ids import Rank
from mdi.nodes.starter import Starter
from support.models import make_model
from support.rings import Ring, ring_of, with_prompts


def test_many_samples_that_end_at_once_do_not_fill_the_inbox(tiny: Path, tmp_path: Path) -> None:
    """One prompt for all, as by default: hundreds of forks and releases travel in a burst."""
    with ring_of(3, tmp_path) as ring:
        outputs = ring.generate(tiny, [[1, 2, 3]] * 1500, n_tokens=1)
        assert [len(tokens) for tokens in outputs] == [1] * 1500
        assert all(secondary.status().state is NodeState.IDLE for secondary in ring.secondaries)


def starter_of(ring: Ring, folder: Path, **options: object) -> Starter:
    values = {"dtype": "float32", "keep_nodes": True, "n_tokens": 4, **options}
    arguments = StarterOptions(ckpt=folder, **values)  # type: ignore[arg-type]
    job = with_prompts(plan_job(arguments, ring.network), [[1, 2]], arguments)
    return Starter(ring.network, job, arguments)


def spec_of(starter: Starter) -> SessionSpec:
    """What the first secondary is told in the run's first epoch."""
    return starter._keeper._formation.spec(starter._keeper.plan, Rank(1), epoch=1)


def test_of_two_starters_at_once_one_is_told_that_the_node_is_taken(tiny: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path) as ring:
        secondary = ring.secondaries[0]
        starter = starter_of(ring, tiny)
        with starter:
            specs = [replace(spec_of(starter), run=run) for run in (1, 2)]
            client = ControlClient("secondary 0", "127.0.0.1", secondary.http_port)
            client.init(specs[0])  # the chunk is missing: the node is idle again
            client.send_chunk(starter._job.chunk_of(1), specs[0].chunk_digest)
            outcomes: queue.Queue[str] = queue.Queue()

            def ask(index: int) -> None:
                try:
                    outcomes.put(type(client.init(specs[index])).__name__)
                except ControlError:
                    outcomes.put("refused")

            threads = [threading.Thread(target=ask, args=(index,)) for index in (0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(outcomes.get_nowait() for _ in threads) in (["Ready", "refused"], ["refused", "Ready"])


def test_a_node_that_waits_for_a_living_starter_refuses_another_one(tiny: Path, tmp_path: Path) -> None:
    with ring_of(2, tmp_path) as ring:
        client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port)
        with starter_of(ring, tiny) as starter:
            client.init(spec_of(starter))
            client.send_chunk(starter._job.chunk_of(1), spec_of(starter).chunk_digest)
            client.init(spec_of(starter))
            with pytest.raises(NodeBusy, match=r"already serves the starter at 127\.0\.0\.1"):
                client.init(replace(spec_of(starter), run=7))
        assert ring.generate(tiny, [[1, 2]], n_tokens=2)  # gone: the node is free again


def test_a_starters_chunk_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "org" / "other", seed=1)
    with ring_of(2, tmp_path / "cache") as ring:
        ring.generate(other, [[1, 2]], n_tokens=1)
        chunk = other / "chunks" / "2nodes" / "model_starter.pth"
        with pytest.raises(CheckpointError, match="not the chunk that the manifest"):
            ring.generate(tiny, [[1, 2]], chunk=chunk)


def test_a_node_that_is_stopped_for_good_ends_the_run_and_is_named(tiny: Path, tmp_path: Path) -> None:
    """Where nobody can take over: the starter has its chunks, and not the whole model."""
    folder = Path(shutil.copytree(tiny, tmp_path / "org" / "tiny", ignore=shutil.ignore_patterns("chunks")))
    with ring_of(3, tmp_path / "cache") as ring:
        ring.generate(folder, [[1, 2]], n_tokens=1)
        (folder / "lit_model.pth").unlink()
        with starter_of(ring, folder, n_tokens=100, node_timeout_s=1.0) as starter:
            starter.prepare()

            def stop(sample: object, token: int) -> None:
                if starter.scheduler.n_generated == 5:
                    ring.secondaries[0].__exit__(None, None, None)

            with pytest.raises(RingBroken, match=r"secondary 0 did not come back within 1 s .*lit_model\.pth"):
                starter.run(Observer(stop, lambda sample: None))


ODD: list[dict[str, object]] = [{"n_head": 0}, {"norm_class_name": "Foo"}, {"n_query_groups": 0}, {"head_size": -1}]


@pytest.mark.parametrize("change", ODD)
def test_an_odd_configuration_is_refused_and_the_node_lives(
    change: dict[str, object], tiny: Path, tmp_path: Path
) -> None:
    with ring_of(2, tmp_path) as ring:
        with starter_of(ring, tiny) as starter:
            spec = spec_of(starter)
            client = ControlClient("secondary 0", "127.0.0.1", ring.secondaries[0].http_port)
            with pytest.raises(ControlError, match="not a configuration that litgpt can run"):
                client.init(replace(spec, config=spec.config | change))
        assert ring.generate(tiny, [[1, 2]], n_tokens=2)
