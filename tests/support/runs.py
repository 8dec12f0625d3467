"""Runs of the starter on a network of a test, and what tests wait for in them."""

from pathlib import Path
from typing import Any

from support.scripts import (
    Network,
    Process,
    Scripts,
    call,
    state_of,
    wait_until,
)

NO_WAITING = ("--node-timeout", 1, "--n-tokens", 3)

ENDLESS = ("--n-tokens", 29_000, "--keep-nodes")


def run_alone(scripts: Scripts, alone: Network, model: Path, *arguments: object) -> Any:
    return scripts.run("sample.py", "--nodes-config", alone.path, "--ckpt", model, "--n-tokens", 3, *arguments)


def start_run(scripts: Scripts, network: Network, model: Path, *arguments: object) -> Process:
    return scripts.start("starter.py", "--ckpt", model, "--nodes-config", network.path, *arguments)


def wait_until_generating(network: Network, starter: Process) -> None:
    def generating() -> bool:
        assert starter.alive, starter.stderr
        return int(call(network.http_port(0)).get("tokens") or 0) > 5

    wait_until(generating, 60, f"no tokens: {starter.stderr}")


def assert_serves_again(scripts: Scripts, network: Network, model: Path) -> None:
    """The next run on the same secondaries works."""
    for node in range(1, len(network.nodes)):
        wait_until(lambda node=node: state_of(network.http_port(node)) == "idle", 60, f"node {node} is not idle")
    result = start_run(scripts, network, model, "--n-tokens", 3, "--keep-nodes").result()
    assert result.code == 0, result.stderr
    assert "Generated 9 tokens" in result.stdout
