"""The demo runs nothing beside another ring; its comparison says where the numbers cannot be trusted."""

import sys
from pathlib import Path

import pytest

import mdi.machine
import mdi.other_load
from mdi.cli.commands import demo
from mdi.cli.signals import Signals
from mdi.config.network import load_network
from mdi.errors import ConfigError
from mdi.net.sockets import listen
from mdi.other_load import OtherLoad
from support.scripts import write_network


class Meter:
    """Others take `taken[0]` cores beside the first ring, and so on."""

    taken: list[float]

    def stop(self, n_cores: int) -> OtherLoad:
        return OtherLoad(self.taken.pop(0), n_cores)


@pytest.mark.parametrize(
    ("n_cores", "taken", "doubts"),
    [
        (8, [0.0, 0.1, 0.2], []),
        (2, [0.0, 0.0, 0.0], ["this machine has 2 cores: more than 2 nodes cannot be faster here"]),
        (
            8,
            [0.0, 6.0, 1.5],
            [f"other programs took {n} of 8 cores beside {k} nodes" for n, k in [("6.00", 2), ("1.50", 3)]],
        ),
    ],
)
def test_a_comparison_that_says_little_says_so_on_the_screen_and_in_the_plot(
    n_cores: int,
    taken: list[float],
    doubts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[object] = []
    monkeypatch.setattr(Meter, "taken", list(taken), raising=False)
    monkeypatch.setattr(mdi.other_load, "LoadMeter", Meter)
    monkeypatch.setattr(mdi.machine, "n_cores", lambda: n_cores)
    monkeypatch.setattr(demo, "run_ring", lambda signals, n_nodes, *rest: ran.append(n_nodes))
    monkeypatch.setattr(demo, "run_to_end", lambda command, signals: ran.append(command[-2:]) or 0)
    demo.compare(Signals(), Path("checkpoints/tiny"), "80")
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "says little" in line] == [
        f"This comparison says little: {doubt}." for doubt in doubts
    ]
    assert said.count("meanwhile other programs took") == 3
    assert ran[:3] == [1, 2, 3]
    assert ran[3] == (["--note", f"says little: {'; '.join(doubts)}"] if doubts else ["--n-samples", "3"])


@pytest.mark.parametrize("port", ["http_port", "port_in"])
def test_a_port_that_is_taken_ends_the_demo_before_anything_runs(
    port: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = write_network(tmp_path / "three.json", 3).path
    monkeypatch.setattr(demo, "CONFIGS", {3: network.name})
    monkeypatch.setattr(demo, "SETTINGS_DIR", tmp_path)
    monkeypatch.setattr(demo, "run_ring", lambda *ring: pytest.fail("the ring was run"))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--ckpt", "checkpoints/tiny"])
    node = load_network(network).secondaries[0]
    taken = getattr(node, port)
    with (
        listen(node.addr, taken),
        pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1 port {taken}: another program uses"),
    ):
        demo.main(Signals())


def test_the_smaller_rings_use_the_ports_of_the_largest() -> None:
    networks = {n_nodes: load_network(demo.SETTINGS_DIR / name) for n_nodes, name in demo.CONFIGS.items()}
    used = {
        n_nodes: {port for node in network.nodes for port in (node.http_port, node.port_in)}
        for n_nodes, network in networks.items()
    }
    assert used[2] <= used[3]
