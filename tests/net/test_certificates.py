"""A private authority and certificates for the machines of a network, and what TLS makes of them."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mdi.errors import ConfigError
from mdi.net.certificates import make_certificates
from mdi.net.tls import Tls
from support.config_files import error_of, files_of, network_json, written
from support.paths import ROOT, SRC

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(["127.0.0.1", "10.0.0.2", "box.local", "::1"], folder)
    return folder


def test_every_machine_gets_a_folder_that_tls_accepts(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {"_authority", "127.0.0.1", "10.0.0.2", "box.local", "__1"}
    for name in ("127.0.0.1", "10.0.0.2", "box.local", "__1"):
        assert {path.name for path in (made / name).iterdir()} == {"node.pem", "node.key", "ca.pem"}
        files_of(made / name).check()


def test_private_keys_are_for_their_owner_alone(made: Path) -> None:
    keys = list(made.rglob("*.key"))
    assert len(keys) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert not (made / "10.0.0.2" / "ca.key").exists()


def test_a_private_key_that_others_may_read_is_warned_of(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_of(Path(shutil.copytree(made / "10.0.0.2", tmp_path / "copy")))
    files.check()
    assert not caplog.records
    files.private_key.chmod(0o644)
    files.check()
    assert f"other users of this machine may read it: chmod 600 {files.private_key}" in caplog.text


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("127.0.0.1", ["IP Address:127.0.0.1", "DNS:localhost", "IP Address:0:0:0:0:0:0:0:1"]),
        ("10.0.0.2", ["IP Address:10.0.0.2"]),
        ("box.local", ["DNS:box.local"]),
    ],
)
def test_a_certificate_carries_the_address_that_the_others_call(made: Path, name: str, names: list[str]) -> None:
    command = ["openssl", "x509", "-in", str(made / name / "node.pem"), "-noout", "-ext", "subjectAltName"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert text.splitlines()[1].strip().split(", ") == names


def test_what_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    make_certificates(["10.0.0.1"], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    make_certificates(["10.0.0.1", "10.0.0.2"], tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    files_of(tmp_path / "10.0.0.2").check()
    assert (tmp_path / "10.0.0.1" / "ca.pem").read_bytes() == (tmp_path / "10.0.0.2" / "ca.pem").read_bytes()


def test_an_authority_that_lost_a_file_is_not_replaced(tmp_path: Path) -> None:
    make_certificates(["10.0.0.1"], tmp_path)
    (tmp_path / "_authority" / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"_authority lacks ca\.key: bring back"):
        make_certificates(["10.0.0.2"], tmp_path)
    assert not (tmp_path / "10.0.0.2").exists()


@pytest.mark.parametrize("addr", ["10.7..48,IP:1", "a/b", "-a", "a\nb", "../x", "", "_authority"])
def test_an_address_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, addr: str) -> None:
    with pytest.raises(ConfigError, match="neither an address nor the name of a machine"):
        make_certificates(["10.0.0.1", addr], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_openssl_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no openssl on this machine: install it"):
        make_certificates(["10.0.0.1"], tmp_path / "certs")


def test_a_failure_of_openssl_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "openssl"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'out of\nrandomness' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    with pytest.raises(ConfigError, match="openssl req failed: out of randomness"):
        make_certificates(["10.0.0.1"], tmp_path / "certs")
    assert list((tmp_path / "certs").iterdir()) == []


def test_the_script_makes_certificates_for_a_network_file(tmp_path: Path) -> None:
    network = written(tmp_path, network_json())
    script = [sys.executable, str(ROOT / "src" / "make_certs.py"), "--nodes-config", str(network)]
    done = subprocess.run([*script, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out' / '127.0.0.1'}\n", "")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda files, other: Tls(files.certificate, other.private_key, files.ca), "are not a certificate and its key"),
        (lambda files, other: Tls(files.private_key, files.certificate, files.ca), "are not a certificate and its key"),
        (lambda files, other: Tls(files.certificate, files.private_key, files.private_key), "not a certificate auth"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(made: Path, change: object, problem: str) -> None:
    files = change(files_of(made / "127.0.0.1"), files_of(made / "10.0.0.2"))  # type: ignore[operator]
    text = error_of(files.check)
    assert text.startswith("tls: ")
    assert problem in text


def test_a_private_key_with_a_password_is_refused_without_asking(made: Path, tmp_path: Path) -> None:
    files = files_of(made / "127.0.0.1")
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(files.private_key), "-aes128", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, capture_output=True, check=True)
    assert "are not a certificate and its key" in error_of(Tls(files.certificate, locked, files.ca).check)


def test_certificates_are_made_without_any_requirement(tmp_path: Path) -> None:
    """`make certs` runs the script by whatever Python there is, before anything is installed."""
    script, network = SRC / "make_certs.py", SRC / "settings_distr" / "configuration.json"
    command = [sys.executable, "-I", "-S", script, "--nodes-config", network, "--out", tmp_path / "certs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "certs" / "127.0.0.1" / "node.pem").is_file()
    planned = subprocess.run(["make", "-n", "certs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "install" not in planned.stdout
