"""Long proofs, run by `make soak`, and a short form of one.

`SOAK_SECONDS` (3600) is how long the nodes of the second live, `SOAK_SEED` (0) what happens to them;
`SOAK_COLD_RUNS` (200) is how often the first starts three processes.
"""

import os
from pathlib import Path

import pytest

from support.models import make_model
from support.scripts import Scripts, WarmPython, samples_of, write_network
from support.soak import Soak

pytestmark = pytest.mark.slow

SECONDS, SEED = float(os.environ.get("SOAK_SECONDS", "3600")), int(os.environ.get("SOAK_SEED", "0"))
N_COLD_RUNS = int(os.environ.get("SOAK_COLD_RUNS", "200"))


@pytest.mark.soak
def test_many_cold_runs_on_the_same_ports(tmp_path: Path) -> None:
    """Three new processes each time; none hangs, and all print the same text."""
    model = make_model(tmp_path / "org" / "tiny")
    network = write_network(tmp_path / "net.json", 3)
    texts = set()
    for i in range(N_COLD_RUNS):
        with Scripts(tmp_path / f"run{i}") as scripts:
            secondaries = scripts.secondaries(network)
            arguments = ("--ckpt", model, "--nodes-config", network.path, "--n-tokens", 8, "--dtype", "float32")
            result = scripts.run("starter.py", *arguments, timeout_s=120)
            assert result.code == 0, f"run {i}: {result.stderr}"
            ended = [secondary.result() for secondary in secondaries]
        assert [secondary.code for secondary in ended] == [0, 0], f"run {i}: {[end.stderr for end in ended]}"
        texts.add(samples_of(result.stdout))
    assert len(texts) == min(N_COLD_RUNS, 1)


@pytest.mark.soak
def test_long_lived_nodes_stay_as_they_are(
    tmp_path: Path, warm: WarmPython, capsys: pytest.CaptureFixture[str]
) -> None:
    with Scripts(tmp_path / "processes", warm) as scripts:
        soak = Soak(tmp_path, scripts, SEED)
        try:
            soak.play_for(SECONDS)
        finally:
            with capsys.disabled():
                print(f"\n{soak}")
        soak.check()


def test_a_short_soak(tmp_path: Path, scripts: Scripts) -> None:
    soak = Soak(tmp_path, scripts, seed=3, n_orders=1)
    soak.play("kill", cancelled=False)
    soak.play("none", cancelled=True)
    soak.play("stop", cancelled=False)
    soak.check()
    assert soak.counts["kills"] == soak.counts["stops"] == 1
