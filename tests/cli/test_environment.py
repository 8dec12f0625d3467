"""The programs in environments that people have."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mdi.cli import environment
from mdi.cli.environment import (
    cache_folder,
    forget_foreign_variables,
    sleep_at_barriers,
    warn_of_loopback_name,
)
from mdi.config.network import NodeConfig
from mdi.config.options import SecondaryOptions
from mdi.errors import ConfigError
from support.paths import ROOT, SRC

SCRIPTS = sorted((ROOT / "src").glob("*.py"))


def run(*command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """A script in this environment with other variables."""
    return subprocess.run(
        [sys.executable, *command], env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_find_the_package_where_python_leaves_their_folder_out(script: Path) -> None:
    done = run(script, "--help", PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_notebooks_backend_of_matplotlib_decides_over_nothing(tmp_path: Path) -> None:
    """A notebook sets it for every program that is started by `!`."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tokens_time_samples_1nodes_x_1samples.csv").write_text("0,0\n1,1\n")
    variables = {"MPLBACKEND": "module://nonsense", "TQDM_MININTERVAL": "nonsense", "MDI_HOME": str(tmp_path)}
    done = run(SRC / "plot_tok_time.py", "x", "--n-samples", "1", **variables)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "img").glob("*.png"))


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_at_barriers_unless_the_user_chose(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sleep_at_barriers()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_variables_of_libraries_that_nobody_asked_for_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "x")
    monkeypatch.setenv("TQDM_MININTERVAL", "x")
    monkeypatch.setenv("MDI_KEY_OLD_FILE", "x")
    forget_foreign_variables()
    assert "MPLBACKEND" not in os.environ and "TQDM_MININTERVAL" not in os.environ
    assert "MDI_KEY_OLD_FILE" in os.environ


# ---- no home


_WITHOUT_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody  # a user whom the system does not know, as in `docker run --user 12345`
sys.argv[0] = "secondary.py"
from mdi.cli.commands.secondary import run
run()
"""


def secondary_without_home(*options: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    nodes = SRC / "settings_distr" / "secondary" / "node0.json"
    command = ["-c", _WITHOUT_HOME, "--nodes-config", nodes, *options]
    return run(*command, PYTHONPATH=str(SRC), XDG_CACHE_HOME="", MDI_HOME="", **variables)


def test_a_user_without_home_is_told_what_to_set() -> None:
    done = secondary_without_home()
    assert done.returncode == 2
    assert done.stderr.startswith("error: this user has no home folder: ") and done.stderr.count("\n") == 1
    assert "--cache-dir" in done.stderr and "XDG_CACHE_HOME" in done.stderr


def test_a_cache_that_cannot_be_written_is_told_at_the_start(no_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written .*--cache-dir or XDG_CACHE_HOME"):
        cache_folder(SecondaryOptions(cache_dir=no_folder / "chunks"))
    assert cache_folder(SecondaryOptions(cache_dir=tmp_path / "a" / "b")).is_dir()


def test_a_node_with_weights_of_its_own_may_do_without_a_cache(
    no_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder(SecondaryOptions(cache_dir=no_folder / "chunks", ckpt=tmp_path))
    assert "cannot be written" in caplog.text


# ---- a name for this machine alone


def with_hosts(monkeypatch: pytest.MonkeyPatch, hosts: Mapping[str, str]) -> None:
    """As if /etc/hosts had these lines, by name."""

    def lookup(host: str, port: object, **options: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (hosts.get(host, host), port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize(
    ("addr", "listen", "is_told"),
    [
        ("raspberrypi", None, True),
        ("raspberrypi", "0.0.0.0", False),
        ("box", None, False),
        ("127.0.1.1", None, False),
        ("localhost", None, False),
    ],
)
def test_an_own_name_that_means_this_machine_alone_is_warned_of(
    addr: str, listen: str | None, is_told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Debian and Raspberry Pi OS write such a line."""
    with_hosts(monkeypatch, {"raspberrypi": "127.0.1.1", "box": "10.0.0.5", "localhost": "127.0.0.1"})
    monkeypatch.setattr(environment, "shared_addresses", lambda: ["192.168.1.7"])
    with caplog.at_level(logging.WARNING):
        warn_of_loopback_name(NodeConfig(addr, 1, 2, 3, listen=listen))
    assert ("/etc/hosts" in caplog.text and "192.168.1.7" in caplog.text) is is_told
