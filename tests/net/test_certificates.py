"""A private authority and certificates for the machines of a network, and what TLS makes of them."""

import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdi.errors import ConfigError
from mdi.net.certificates import (
    BACKDATED_DAYS,
    CA_DAYS,
    NODE_DAYS,
    RENEWED_DAYS,
    make_certificates,
    renew_certificates,
)
from mdi.net.openssl import read_validity
from mdi.net.tls import Tls
from mdi.net.validity import DAY_S, utc
from support.config_files import error_of, files_of, network_json, written
from support.paths import ROOT, SRC

COPIED = ": copy node.pem, node.key and ca.pem to that machine\n"

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
    with pytest.raises(ConfigError, match="openssl genpkey failed: out of randomness"):
        make_certificates(["10.0.0.1"], tmp_path / "certs")
    assert list((tmp_path / "certs").iterdir()) == []


def test_the_script_makes_certificates_for_a_network_file(tmp_path: Path) -> None:
    network = written(tmp_path, network_json())
    script = [sys.executable, str(ROOT / "src" / "make_certs.py"), "--nodes-config", str(network)]
    done = subprocess.run([*script, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out' / '127.0.0.1'}{COPIED}", "")


# ---- dates


def made_ago(folder: Path, days: float, addr: str = "10.0.0.1") -> Path:
    """The files of a machine, as if they had been made so many days ago."""
    (made,) = make_certificates([addr], folder, time.time() - days * DAY_S)
    return made


def test_certificates_are_valid_from_some_days_back_for_as_long_as_is_documented(made: Path) -> None:
    now_s, text = time.time(), (ROOT / "docs" / "running.md").read_text()
    for path, days in ((made / "_authority" / "ca.pem", CA_DAYS), (made / "10.0.0.2" / "node.pem", NODE_DAYS)):
        validity = read_validity(path)
        assert now_s - validity.begins_s == pytest.approx(BACKDATED_DAYS * DAY_S, abs=3600)
        assert validity.ends_s - now_s == pytest.approx(days * DAY_S, abs=3600)
        assert f"{days} days" in text
    assert files_of(made / "10.0.0.2").validity == read_validity(made / "10.0.0.2" / "node.pem")
    assert files_of(made / "10.0.0.2").ca_validity == read_validity(made / "_authority" / "ca.pem")
    assert f"{BACKDATED_DAYS} days" in text and f"{RENEWED_DAYS} days" in text


def test_a_certificate_never_ends_after_its_authority(tmp_path: Path) -> None:
    made_ago(tmp_path, CA_DAYS - 5)
    made = made_ago(tmp_path, 0, "10.0.0.2")
    assert files_of(made).validity.ends_s == files_of(made).ca_validity.ends_s
    made_ago(tmp_path / "other", CA_DAYS + 5)
    with pytest.raises(ConfigError, match=r"_authority/ca\.pem has ended on 20.* UTC: renew it, with --renew"):
        make_certificates(["10.0.0.2"], tmp_path / "other")


def test_a_configuration_of_openssl_in_the_environment_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", "/no/such/file")
    files_of(made_ago(tmp_path, 0)).check()


@pytest.mark.parametrize(
    ("days", "problem"),
    [
        (NODE_DAYS + 2, "has ended, or this clock is fast; renew it with `make_certs.py --renew` or set the clock"),
        (-BACKDATED_DAYS - 2, "is not valid yet, or this clock is slow"),
    ],
)
def test_a_certificate_that_is_not_valid_ends_a_caller_and_is_told_by_who_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: float, problem: str
) -> None:
    files = files_of(made_ago(tmp_path, days))
    text = error_of(files.check)
    assert re.match(rf"tls: {files.certificate} is valid from \S+ \S+ UTC to .* UTC, and this machine's clock", text)
    assert problem in text
    files.check(waits=True)
    assert [record.levelname for record in caplog.records if str(files.certificate) in record.getMessage()] == ["ERROR"]
    assert caplog.records[0].getMessage() == text


def test_an_authority_that_has_ended_is_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = files_of(made_ago(tmp_path, CA_DAYS + 2))
    files.check(waits=True)
    assert [record.getMessage().partition(" is ")[0] for record in caplog.records] == [
        f"tls: {files.certificate}",
        f"tls: {files.ca}",
    ]


@pytest.mark.parametrize(("days", "n_warnings"), [(NODE_DAYS - 31, 0), (NODE_DAYS - 29, 1), (CA_DAYS - 29, 2)])
def test_a_certificate_that_ends_within_a_month_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: float, n_warnings: int
) -> None:
    authority_days = max(days, NODE_DAYS)
    made_ago(tmp_path, authority_days, "10.0.0.9")
    files = files_of(made_ago(tmp_path, min(days, NODE_DAYS - 29)))
    files.check()
    assert len(caplog.records) == n_warnings
    if n_warnings:
        ends = utc(files.validity.ends_s)
        assert caplog.records[0].getMessage() == (
            f"tls: {files.certificate} ends on {ends}, in 28 days: renew it with `make_certs.py --renew`"
        )


# ---- renewal


def test_what_ends_soon_is_renewed_with_the_same_key(tmp_path: Path) -> None:
    old, young = made_ago(tmp_path, NODE_DAYS - 20), made_ago(tmp_path, 0, "10.0.0.2")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    renewals = renew_certificates(["10.0.0.1", "10.0.0.2", "10.0.0.3"], tmp_path)
    new = tmp_path / "10.0.0.3"
    assert [(renewal.folder, renewal.files) for renewal in renewals] == [
        (old, ("node.pem",)), (young, ()), (new, ("node.pem", "node.key", "ca.pem"))
    ]  # fmt: skip
    changed = {path for path, content in before.items() if path.read_bytes() != content}
    assert changed == {old / "node.pem"}
    for renewal in renewals:
        files_of(renewal.folder).check()
        assert renewal.validity.days_left(time.time()) in (NODE_DAYS - 1, NODE_DAYS)
    assert not any(renewal.files for renewal in renew_certificates(["10.0.0.1", "10.0.0.2"], tmp_path))


@pytest.mark.parametrize("days", [CA_DAYS - 20, CA_DAYS + 20])
def test_an_authority_is_renewed_with_its_key_so_that_old_and_new_certificates_fit(tmp_path: Path, days: float) -> None:
    made_ago(tmp_path, days)
    young = make_certificates(["10.0.0.2"], tmp_path, time.time() - (CA_DAYS - 100) * DAY_S)
    key = (tmp_path / "_authority" / "ca.key").read_bytes()
    copies = files_of(Path(shutil.copytree(young[0], tmp_path / "copies")))
    renewals = renew_certificates(["10.0.0.1", "10.0.0.2"], tmp_path)
    assert [renewal.files for renewal in renewals] == [("node.pem", "ca.pem")] * 2
    assert (tmp_path / "_authority" / "ca.key").read_bytes() == key
    new = files_of(tmp_path / "10.0.0.1")
    new.check()
    assert Tls(new.certificate, new.private_key, copies.ca).validity == new.validity
    assert Tls(copies.certificate, copies.private_key, new.ca).validity == copies.validity


def test_a_machine_whose_key_is_gone_is_told_before_anything_is_renewed_for_it(tmp_path: Path) -> None:
    old = made_ago(tmp_path, NODE_DAYS)
    (old / "node.key").unlink()
    before = (old / "node.pem").read_bytes()
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1 lacks node\.key: bring back what was there, or move it away"):
        renew_certificates(["10.0.0.1"], tmp_path)
    assert (old / "node.pem").read_bytes() == before


def test_the_script_says_what_ends_and_what_to_copy_where(tmp_path: Path) -> None:
    network, out = written(tmp_path, network_json()), tmp_path / "out"
    made = made_ago(out, NODE_DAYS, "127.0.0.1")
    script = [sys.executable, str(ROOT / "src" / "make_certs.py"), "--nodes-config", str(network), "--out", str(out)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{made}{COPIED}")
    assert done.stderr == f"left as they are, and end soon or have ended: {made / 'node.pem'}; --renew renews them\n"
    done = subprocess.run([*script, "--renew"], capture_output=True, text=True, check=False)
    ends = utc(files_of(made).validity.ends_s)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{made}: valid until {ends}: copy node.pem to that machine"
    assert "Restart each node" in done.stdout
    done = subprocess.run([*script, "--renew"], capture_output=True, text=True, check=False)
    assert done.stdout == f"{made}: valid until {ends}: nothing new\n"


# ---- files that cannot be used


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


def test_a_certificate_of_another_authority_is_refused(made: Path, tmp_path: Path) -> None:
    (other,) = make_certificates(["10.0.0.2"], tmp_path)
    files = files_of(made / "10.0.0.2")
    assert error_of(Tls(files.certificate, files.private_key, other / "ca.pem").check).startswith(
        f"tls: {files.certificate} is not signed by {other / 'ca.pem'}: "
    )


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
