"""Nodes on hosts of their own: the quick start for several machines, by addresses and by discovery, and a firewall."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.namespaces import Host, hosts
from support.scripts import Network, Scripts, WarmPython, samples_of

pytestmark = pytest.mark.slow

KEYED = {"MDI_KEY": "correct horse battery staple"}
GREEDY = ("--temperature", 0, "--dtype", "float32", "--n-tokens", 3)

# A client of the API on a host: `ASK URL BODY`.
ASK = """
import sys
from urllib.request import Request, urlopen

request = Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urlopen(request, timeout=60).read().decode())
"""


@pytest.fixture(scope="module")
def three(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scripts, list[Host]]]:
    """A head, and two hosts on which a secondary runs."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(3) as found, Scripts(folder / "processes", warm) as scripts:
        if found is None:
            pytest.skip("no network namespaces for this user")
        started = [
            scripts.start(*host.script("secondary.py", "--cache-dir", folder / host.namespace), env=KEYED)
            for host in found[1:]
        ]
        for process, host in zip(started, found[1:], strict=True):
            process.wait_for(f"waiting for a starter, at {host.ipv4} port 8088 (also {host.ipv6}); on the starter: ")
        yield scripts, found


def test_the_quick_start_by_addresses_and_by_discovery(
    three: tuple[Scripts, list[Host]], alone: Network, tiny: Path
) -> None:
    scripts, (head, one, other) = three
    run = ("--ckpt", tiny, "--keep-nodes", *GREEDY)
    on_one = scripts.start("sample.py", "--nodes-config", alone.path, "--ckpt", tiny, *GREEDY, "--n-samples", 3)
    typed = f"{one.ipv4},[{other.ipv6}]:8088"
    by_address = scripts.run(*head.script("starter.py", "--nodes", typed, *run), env=KEYED)
    assert by_address.code == 0, by_address.stderr
    found = scripts.run(*head.script("starter.py", "--discover", 3, *run), env=KEYED)
    assert found.code == 0, found.stderr
    assert "starter of 3 nodes, with " in found.stderr
    assert samples_of(by_address.stdout) == samples_of(found.stdout) == samples_of(on_one.result().stdout) != ""


def test_nodes_that_were_found_serve_users(three: tuple[Scripts, list[Host]], tiny: Path) -> None:
    scripts, (head, *_) = three
    flags = ("--discover", 2, "--serve", "127.0.0.1:8000", "--ckpt", tiny, "--dtype", "float32", "--keep-nodes")
    server = scripts.start(*head.script("starter.py", *flags), env=KEYED)
    server.wait_for("serving ")
    question = json.dumps({"model": "tiny", "prompt": "Once upon a time", "max_tokens": 3})
    command = [sys.executable, "-c", ASK, "http://127.0.0.1:8000/v1/completions", question]
    answer = subprocess.run(
        ["ip", "netns", "exec", head.namespace, *command], capture_output=True, check=True, timeout=60
    )
    assert json.loads(answer.stdout)["choices"][0]["text"]
    server.send_signal(signal.SIGTERM)
    assert server.result().code in (0, 143)


def test_a_firewall_that_lets_one_direction_through_is_named(three: tuple[Scripts, list[Host]]) -> None:
    scripts, (head, one, other) = three
    well = scripts.run(*head.script("nodes.py", "--discover", 3), env=KEYED)
    assert (well.code, len(well.stdout.splitlines())) == (0, 3), well.stdout + well.stderr
    listing = head.script("nodes.py", "--nodes", f"{one.ipv4},{other.ipv4}")
    strange = scripts.run(*listing, env={"MDI_KEY": "another horse, another staple"})
    assert strange.code == 1 and strange.stdout.count("  other key  ") == 2, strange.stdout
    one.drop_connections(source=other.ipv4, port=8088)
    blocked = scripts.run(*listing, env=KEYED)
    assert blocked.code == 1
    *_, trouble = blocked.stdout.splitlines()
    assert re.fullmatch(
        rf"\S+ \({other.ipv4}\) does not reach \S+ \({one.ipv4}\) \(its HTTP port: timed out, its ring port: not tried"
        rf"\); the other way works: a firewall on \S+ \({one.ipv4}\) lets only one direction through",
        trouble,
    ), blocked.stdout
