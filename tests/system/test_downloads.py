"""prepare_model.py and a hub: a download that is interrupted, and goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch

from support.hf_folders import make_hf_folder
from support.hub import StubHub, serve
from support.scripts import Scripts, wait_until

pytestmark = pytest.mark.slow

CUT = 10_000  # bytes of the weights that have come when the download is interrupted


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    files = {path.name: path.read_bytes() for path in make_hf_folder(tmp_path / "source").iterdir()}
    with serve(StubHub("org/tiny", files, large=len(files["model.safetensors"]))) as running:
        yield running


def test_ctrl_c_leaves_what_the_next_run_goes_on_with(hub: StubHub, scripts: Scripts, tmp_path: Path) -> None:
    """The server is silent, and the client would wait for it for hours."""
    hub.hang, hub.stall_after = Event(), CUT
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "10000",
        "HF_TOKEN": "",
        "NO_PROXY": "*",
    }
    command = ("prepare_model.py", "org/tiny", "--ckpt-folder", tmp_path / "checkpoints")
    running = scripts.start(*command, cold=True, env=environment)
    working = tmp_path / "checkpoints" / "org" / "tiny.partial"
    wait_until(lambda: any(path.stat().st_size == CUT for path in working.rglob("model.safetensors.*")), 60, "part")
    running.send_signal(signal.SIGINT)
    interrupted = running.result()
    assert (interrupted.code, interrupted.stderr.splitlines()[-1]) == (130, "interrupted")
    hub.stall_after = None
    hub.hang.set()
    resumed = scripts.run(*command, cold=True, env=environment)
    assert resumed.code == 0, resumed.stderr
    assert ", of which " in resumed.stderr
    asked = [request.range for request in hub.seen("GET", "/storage/")]
    assert asked == [None, f"bytes={CUT}-{len(hub.files['model.safetensors']) - 1}"]
    folder = tmp_path / "checkpoints" / "org" / "tiny"
    assert torch.load(folder / "lit_model.pth", weights_only=True)["transformer.wte.weight"].shape == (320, 16)
    assert not list(folder.rglob(".cache"))
