"""Nodes whose certificates have ended, or whose clocks differ: told by both, in one line each."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from mdi.net.certificates import BACKDATED_DAYS, NODE_DAYS, make_certificates
from mdi.net.validity import DAY_S
from support.runs import NO_WAITING, start_run
from support.scripts import Network, Scripts, one_line_error, write_network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine"),
]

TIMES = r"valid from 20\S+ \S+ UTC to 20\S+ \S+ UTC, and this machine's clock says 20\S+ \S+ UTC"


def with_certificate(network: Network, certs: Path, name: str, days_ago: float) -> Network:
    """The network as a node has it whose certificate was made so many days ago, all by one authority."""
    folder = make_certificates(["127.0.0.1"], certs, time.time() - days_ago * DAY_S)[0].rename(certs / name)
    files = {"certificate": "node.pem", "private_key": "node.key", "ca": "ca.pem"}
    tls = {key: str(folder / file) for key, file in files.items()}
    path = network.path.with_name(f"{name}.json")
    path.write_text(json.dumps(json.loads(network.path.read_text()) | {"tls": tls}))
    return Network(path, network.nodes)


@pytest.mark.parametrize(
    ("days_ago", "own", "seen"),
    [
        (NODE_DAYS + 2, "it has ended, or this clock is fast; renew it", "certificate has ended: compare the clocks"),
        (
            -BACKDATED_DAYS - 2,
            "it is not valid yet, or this clock is slow",
            "certificate is not valid yet, or for",
        ),
    ],
)
def test_a_certificate_that_is_not_valid_is_told_by_its_node_and_by_the_others(
    scripts: Scripts, split: Path, tmp_path: Path, days_ago: float, own: str, seen: str
) -> None:
    plain = write_network(tmp_path / "net.json", 2)
    good = with_certificate(plain, tmp_path / "certs", "good", 0)
    bad = with_certificate(plain, tmp_path / "certs", "bad", days_ago)
    one_line_error(start_run(scripts, bad, split, *NO_WAITING).result(), 2, rf"tls: \S+/bad/node.pem is {TIMES}: {own}")
    secondary = scripts.start("secondary.py", "--nodes-config", bad.path, 0)
    secondary.wait_for("waiting for a starter")  # it goes on: its clock may be set yet
    assert f"tls: {tmp_path}/certs/bad/node.pem is valid from" in secondary.stderr
    assert own in secondary.stderr
    result = start_run(scripts, good, split, *NO_WAITING).result()
    one_line_error(result, 1, rf"secondary 0 at https://\S+ does not agree on TLS: its certificate is {TIMES}: it ")
    secondary.wait_for(
        f"refused a connection from 127.0.0.1: it does not agree on TLS: it says that this node's {seen}"
    )
    assert re.search(rf"{seen}.*; this node.s is {TIMES}.*\(\S+/bad/node.pem\)", secondary.stderr)
    assert "Traceback" not in secondary.stderr
