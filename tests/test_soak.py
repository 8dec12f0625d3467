"""Long proofs: run by `make soak`."""

from pathlib import Path

import pytest

from script_helpers import Scripts, samples_of, write_network
from tiny_models import make_model

N_RUNS = 200


@pytest.mark.soak
def test_two_hundred_cold_runs_on_the_same_ports(tmp_path: Path) -> None:
    """Three new processes each time; none hangs, and all print the same text."""
    model = make_model(tmp_path / "org" / "tiny")
    network = write_network(tmp_path / "net.json", 3)
    texts = set()
    for i in range(N_RUNS):
        with Scripts(tmp_path / f"run{i}") as scripts:
            secondaries = scripts.secondaries(network)
            arguments = ("--ckpt", model, "--nodes-config", network.path, "--n-tokens", 8, "--dtype", "float32")
            result = scripts.run("starter.py", *arguments, timeout_s=120)
            assert result.code == 0, f"run {i}: {result.stderr}"
            ended = [secondary.result(10) for secondary in secondaries]
        assert [secondary.code for secondary in ended] == [0, 0], f"run {i}: {[end.stderr for end in ended]}"
        texts.add(samples_of(result.stdout))
    assert len(texts) == 1
