"""A signal ends a node in order in long work too, which looks at no event."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.config import config_to_dict
from mdi.checkpoint.digests import content_digest
from mdi.checkpoint.folder import ModelFolder, open_folder
from mdi.config.network import NetworkConfig
from mdi.config.options import StarterOptions
from mdi.control.protocol import NodeBusy
from mdi.inbox import Inbox, Stopped
from mdi.model.span import Span
from mdi.nodes.secondary import Secondary
from mdi.nodes.sources import WeightSources
from support.control import SPEC
from support.models import make_model
from support.rings import ANY_PORT, starter_for


@pytest.fixture(scope="module")
def folder(tiny: Path) -> ModelFolder:
    return open_folder(tiny, 1)


def test_a_starter_that_loads(tiny: Path) -> None:
    with starter_for(NetworkConfig(ANY_PORT, ()), StarterOptions(ckpt=tiny)) as (starter, _):
        starter.interrupt(signal.SIGHUP)
        with pytest.raises(Stopped) as caught:
            starter.prepare()
    assert caught.value.code == 129


def test_a_starter_that_writes_chunks(tmp_path: Path) -> None:
    model, inbox = open_folder(make_model(tmp_path / "org" / "mine"), 2), Inbox()
    inbox.interrupt(signal.SIGTERM)
    with pytest.raises(Stopped):
        model.with_chunks([Span(0, 3), Span(3, 6)], None, inbox.check)
    assert [path for path in model.path.rglob("*") if path.is_file() and "chunks" in path.parts] == []


def test_a_secondary_that_loads_answers_its_starter_that_it_was_stopped(
    folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = WeightSources(ChunkCache(tmp_path, content_digest), folder=folder.path)
    spec = replace(SPEC, config=config_to_dict(folder.config), span=Span(2, 4), chunk_digest="", n_nodes=2)
    with Secondary(ANY_PORT, sources, dtype="float32") as secondary:
        load = WeightSources.load

        def interrupted(*arguments: Any) -> bool:
            secondary.interrupt(signal.SIGINT)
            return load(*arguments)

        monkeypatch.setattr(WeightSources, "load", interrupted)
        answer = secondary.request_init(spec)
        with pytest.raises(Stopped) as caught:
            secondary.serve()
        assert caught.value.code == 130
        with pytest.raises(NodeBusy, match="the node was stopped"):  # so that the starter waits for it
            answer.result(0)
