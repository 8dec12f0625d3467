"""Fetching a model's files, against a stand-in hub on loopback."""

import errno
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mdi.convert import hub, hub_files
from mdi.errors import CheckpointError, ConfigError, MdiError
from support.hub import REVISION, Request, StubHub, serve

TOKEN = "hf_SecretSecretSecret"
CONFIG = b'{"model_type": "llama"}'
WEIGHTS = os.urandom(300_000)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


@pytest.fixture(autouse=True)
def _no_stored_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, proxy or hub of the person who runs the tests takes part."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(hub_files, "_PAUSES_S", (0.0, 0.0, 0.0))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    files = {
        "config.json": CONFIG,
        "generation_config.json": b"{}",
        "tokenizer.json": b'{"tokens": 1}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"never" * 100_000,
        "consolidated.00.pth": b"never",
        "original/model.safetensors": b"never",
        "model-q4.gguf": b"never",
        "onnx/model.onnx": b"never",
        "README.md": b"never",
    }
    with serve(StubHub("org/tiny", files)) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "tiny.partial"
    target.mkdir()
    return target


def failure(folder: Path, *, repo: str = "org/tiny", token: str | None = None) -> MdiError:
    """The error of a download that must fail: one line, without the token."""
    with pytest.raises(MdiError) as caught:
        hub.download(repo, folder, token=token)
    text = str(caught.value)
    assert "\n" not in text
    assert TOKEN not in text
    return caught.value


# ---- which files ----------------------------------------------------------------------------------

SMALL_FILES = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


def arrived(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_only_the_wanted_files_arrive_and_arrive_whole(stub: StubHub, folder: Path) -> None:
    hub.download("org/tiny", folder)
    assert arrived(folder) == SMALL_FILES | {"model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "model.gguf"], ["pytorch_model.bin"]),
        (["sub/model.safetensors", "model.onnx", "adapter_model.safetensors"], []),
        (["weights.safetensors", "consolidated.safetensors"], ["weights.safetensors"]),
        (
            [*SHARDS, "consolidated.safetensors", "pytorch_model.bin", "model.safetensors.index.json"],
            [*SHARDS, "model.safetensors.index.json"],
        ),
        ([*BIN_SHARDS, "pytorch_model.bin.index.json"], [*BIN_SHARDS, "pytorch_model.bin.index.json"]),
    ],
)
def test_one_form_of_the_weights_is_chosen(names: list[str], weights: list[str]) -> None:
    assert hub.wanted_files([*names, "config.json"]) == ["config.json", *weights]


def test_the_configuration_can_be_fetched_first(stub: StubHub, folder: Path) -> None:
    assert hub.download_config("org/tiny", folder) == {"model_type": "llama"}
    assert arrived(folder) == {"config.json"}


def test_all_but_the_weights_can_be_fetched_first(stub: StubHub, folder: Path) -> None:
    hub.download_small_files("org/tiny", folder)
    assert arrived(folder) == SMALL_FILES


def test_the_parts_of_a_tokenizer_are_wanted_where_there_is_no_whole_one() -> None:
    parts = ["added_tokens.json", "merges.txt", "special_tokens_map.json", "vocab.json"]
    assert hub.wanted_files([*parts, "vocab.txt", "model.safetensors"]) == [*parts, "model.safetensors"]
    for whole in ("tokenizer.json", "tokenizer.model"):
        wanted = ["special_tokens_map.json", whole, "model.safetensors"]
        assert hub.wanted_files([*parts, whole, "model.safetensors"]) == wanted


# ---- resuming -------------------------------------------------------------------------------------


def ranges(stub: StubHub) -> list[str | None]:
    """What was asked for of the large file."""
    return [request.range for request in stub.seen("GET", "/storage/model.safetensors")]


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(stub: StubHub, folder: Path) -> None:
    stub.drop_after = 123_456
    hub.download("org/tiny", folder)
    assert ranges(stub) == [None, "bytes=123456-299999"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_download_resumes_where_it_stopped(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "_PAUSES_S", ())
    stub.drop_after = 123_456
    assert "it resumes where it stopped" in str(failure(folder))
    assert not (folder / "model.safetensors").exists()
    hub.download("org/tiny", folder)
    assert ranges(stub) == [None, "bytes=123456-299999"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_resumed_download_says_what_is_there(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_files, "_PAUSES_S", ())
    stub.drop_after = 200_000
    failure(folder)
    hub.download("org/tiny", folder)
    assert "fetching 0.30 MB from org/tiny, of which 0.20 MB are here" in caplog.text


def test_another_revision_of_a_file_does_not_go_on_with_the_former_one(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_files, "_PAUSES_S", ())
    stub.drop_after = 123_456
    failure(folder)
    stub.files["model.safetensors"] = other = os.urandom(300_000)
    hub.download("org/tiny", folder)
    assert ranges(stub) == [None, None]
    assert (folder / "model.safetensors").read_bytes() == other
    assert "again" not in caplog.text


def test_a_server_that_does_not_know_ranges_sends_the_file_again(stub: StubHub, folder: Path) -> None:
    stub.drop_after, stub.knows_ranges = 123_456, False
    hub.download("org/tiny", folder)
    assert ranges(stub) == [None, "bytes=123456-299999"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_is_too_large_for_one_answer_comes_in_several(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "_MAX_ANSWER_BYTES", 120_000)
    hub.download("org/tiny", folder)
    assert ranges(stub) == ["bytes=0-119999", "bytes=120000-239999", "bytes=240000-299999"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_finished_files_are_not_fetched_again(stub: StubHub, folder: Path) -> None:
    hub.download("org/tiny", folder)
    stub.requests.clear()
    hub.download("org/tiny", folder)
    assert [request.path.split("?")[0] for request in stub.requests] == ["/api/models/org/tiny"]


def test_a_file_in_the_cache_is_not_fetched(stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder.parent / "cache"
    snapshot = cache / "models--org--tiny" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub.download("org/tiny", folder)
    assert ranges(stub) == []
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_unreachable_hub_is_an_error_even_if_the_folder_holds_files(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """snapshot_download would answer with the half-filled folder."""
    hub.download("org/tiny", folder)
    stub.api_status = 503
    assert "answered 503" in str(failure(folder))


# ---- several at once ------------------------------------------------------------------------------


def with_shards(stub: StubHub, n: int) -> None:
    """Have the weights of the repo in `n` files."""
    del stub.files["model.safetensors"]
    for i in range(1, n + 1):
        stub.files[f"model-{i:05d}-of-{n:05d}.safetensors"] = os.urandom(100_000)


def test_a_few_files_are_fetched_at_once(stub: StubHub, folder: Path) -> None:
    with_shards(stub, 8)
    stub.together = threading.Barrier(4, timeout=60)
    hub.download("org/tiny", folder)
    assert stub.most_at_once == 4
    assert all((folder / name).read_bytes() == data for name, data in stub.files.items() if "-of-" in name)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_bar_on_a_terminal_counts_the_bytes_of_all_files(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("mdi.terminal.REDRAW_S", 0.0)
    with_shards(stub, 8)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    hub.download("org/tiny", folder)
    *drawn, _ = terminal.getvalue().split("\x1b[K")
    assert all(text.startswith("\rfetching org/tiny: ") or text == "\r" for text in drawn), drawn
    assert any(": 100%, 0.80 MB of 0.80 MB, " in text for text in drawn)
    assert terminal.getvalue().count("\n") == 1, "the result"


@pytest.fixture
def patient_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client that would wait for ever for an answer."""
    from huggingface_hub.utils import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 10_000)
    close_session()
    yield
    close_session()


@pytest.mark.usefixtures("patient_client")
def test_a_file_that_fails_ends_the_others(stub: StubHub, folder: Path) -> None:
    stub.hang, stub.stall_after = threading.Event(), 100_000
    stub.damaged["tokenizer.json"] = 2
    assert "tokenizer.json of org/tiny: damaged" in str(failure(folder))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("hub")] == []


# ---- what has arrived -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_told_and_fetched_again(
    name: str, stub: StubHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stub.damaged[name] = 1
    hub.download("org/tiny", folder)
    assert (folder / name).read_bytes() == stub.files[name]
    assert f"{name}: damaged: its digest is not the one that the hub gives: fetching it again" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_that_is_damaged_twice_is_an_error_and_is_not_kept(name: str, stub: StubHub, folder: Path) -> None:
    stub.damaged[name] = 2
    assert f"{name} of org/tiny: damaged: its digest is not the one that the hub gives, twice" in str(failure(folder))
    assert not [path for path in folder.rglob("*") if path.name.startswith(name)]
    hub.download("org/tiny", folder)
    assert (folder / name).read_bytes() == stub.files[name]


def test_a_file_that_was_damaged_on_the_disk_is_fetched_again(
    stub: StubHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.download("org/tiny", folder)
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    hub.download("org/tiny", folder)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "model.safetensors: damaged" in caplog.text


def test_a_file_that_was_cut_short_on_the_disk_is_completed(stub: StubHub, folder: Path) -> None:
    hub.download("org/tiny", folder)
    os.truncate(folder / "model.safetensors", 1000)
    hub.download("org/tiny", folder)
    assert ranges(stub) == [None, "bytes=1000-299999"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("n_bytes", [100, 400_000])
def test_an_answer_of_another_size_is_not_taken_for_the_file(n_bytes: int, stub: StubHub, folder: Path) -> None:
    """What a hotspot's login page does."""
    stub.sent = {"model.safetensors": b"<html>".ljust(n_bytes)}
    assert "where the hub has 300000 B, twice in a row" in str(failure(folder))
    assert not (folder / "model.safetensors").exists()


def test_a_mirror_that_gives_no_digests_is_believed(stub: StubHub, folder: Path) -> None:
    stub.tells_digests = False
    hub.download("org/tiny", folder)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


# ---- access ---------------------------------------------------------------------------------------


def test_a_gated_model_without_a_token_says_what_to_do(stub: StubHub, folder: Path) -> None:
    stub.gated = True
    text = str(failure(folder))
    assert text.startswith("org/tiny is gated: accept its licence at ")
    assert "/org/tiny and pass --hf-token or set HF_TOKEN" in text


def test_a_gated_model_with_a_token_without_access(stub: StubHub, folder: Path) -> None:
    stub.gated = True
    text = str(failure(folder, token=TOKEN))
    assert "your token has no access yet: accept its licence at" in text


def test_a_gated_model_opens_with_the_token_which_stays_on_the_hub(stub: StubHub, folder: Path) -> None:
    stub.gated, stub.allowed_tokens = True, (TOKEN,)
    hub.download("org/tiny", folder, token=f" {TOKEN}\n")
    stored: list[Request] = stub.seen("GET", "/storage/")
    assert stored
    assert all(request.authorization is None for request in stored)


def test_the_token_may_come_from_the_environment(stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.gated, stub.allowed_tokens = True, (TOKEN,)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.download("org/tiny", folder)
    assert (folder / "config.json").exists()


def test_the_token_is_in_no_log_line(stub: StubHub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    stub.gated, stub.allowed_tokens = True, (TOKEN,)
    hub.download("org/tiny", folder, token=TOKEN)
    stub.gated, stub.allowed_tokens = True, ()
    shutil.rmtree(folder)
    folder.mkdir()
    failure(folder, token=TOKEN)
    assert "Fetching model.safetensors" in caplog.text
    assert TOKEN not in caplog.text


def test_a_download_says_its_size_and_nothing_else(stub: StubHub, folder: Path) -> None:
    """The stub sends the header that huggingface_hub turns into a log line on stderr."""
    code = f"import pathlib, mdi.convert.hub; mdi.convert.hub.download('org/tiny', pathlib.Path({str(folder)!r}))"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"fetching 0.30 MB from org/tiny\n")
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_a b", "hf_ä"])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for error in (failure(folder, token=token), failure(folder)):
        assert isinstance(error, ConfigError)
        assert token not in str(error)


@pytest.mark.parametrize(
    ("token", "advice"), [(None, "it is private: pass --hf-token"), (TOKEN, "your token may not read it")]
)
def test_a_missing_repo(stub: StubHub, folder: Path, token: str | None, advice: str) -> None:
    text = str(failure(folder, repo="org/other", token=token))
    assert "/org/other does not exist, or " + advice in text


@pytest.mark.parametrize("repo", ["a/b/c", "no such folder", "", "../x", "org//x", "org/na--me"])
def test_an_impossible_repo_id(stub: StubHub, folder: Path, repo: str) -> None:
    error = failure(folder, repo=repo)
    assert isinstance(error, ConfigError)
    assert repr(repo) in str(error)
    assert stub.requests == []


# ---- network --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "text"), [(500, "answered 500"), (503, "answered 503"), (403, "permission"), (429, "too many")]
)
def test_answers_of_a_hub_in_trouble(stub: StubHub, folder: Path, status: int, text: str) -> None:
    stub.api_status = status
    error = failure(folder)
    assert isinstance(error, CheckpointError)
    assert text in str(error)


def test_a_token_that_the_hub_does_not_know(stub: StubHub, folder: Path) -> None:
    stub.api_status, stub.api_message = 401, "Invalid credentials in Authorization header"
    assert "does not accept the token: it is mistyped or expired" in str(failure(folder, token=TOKEN))


def test_a_server_error_in_the_middle(stub: StubHub, folder: Path) -> None:
    stub.file_status = 502
    assert "answered 502: the trouble is on its side" in str(failure(folder))


def test_connection_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} refuses connections" in str(failure(folder))


def test_no_such_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_options: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert "cannot find http://hub.invalid: no network" in str(failure(folder))


def test_a_hub_that_does_not_answer(stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.hang = threading.Event()
    monkeypatch.setattr(hub, "_API_TIMEOUT_S", 0.2)
    assert "did not answer in time" in str(failure(folder))


@pytest.mark.parametrize("endpoint", ["hub.example.com", "ftp://hub.example.com"])
def test_an_endpoint_that_is_no_url(folder: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    error = failure(folder)
    assert isinstance(error, ConfigError)
    assert endpoint in str(error)


def test_offline_mode(stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub.utils import close_session

    close_session()  # the session that notices offline mode is made anew
    try:
        assert "HF_HUB_OFFLINE is set" in str(failure(folder))
    finally:
        close_session()


# ---- disk and contents ----------------------------------------------------------------------------


def test_too_little_space_is_noticed_before_the_weights(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _path: usage._replace(free=400_000))
    text = str(failure(folder))
    assert "needs 0.60 MB for download and conversion" in text
    assert "has only 0.40 MB free" in text
    assert stub.seen("GET", "/storage/") == []


def test_what_is_already_there_needs_no_space_again(
    stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.download("org/tiny", folder)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _path: usage._replace(free=400_000))
    hub.download("org/tiny", folder)


def test_a_disk_that_fills_up(stub: StubHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_files.Download, "_request", full)
    assert "no space left on the disk" in str(failure(folder))


def test_a_repo_without_weights(stub: StubHub, folder: Path) -> None:
    del stub.files["model.safetensors"], stub.files["pytorch_model.bin"]
    assert "prepare one of its GGUF files, such as org/tiny:Q4_K_M" in str(failure(folder))
    del stub.files["model-q4.gguf"]
    assert str(failure(folder)) == "org/tiny has no weights in safetensors or .bin format"


def test_a_damaged_config(stub: StubHub, folder: Path) -> None:
    stub.files["config.json"] = b"<html>"
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        hub.download_config("org/tiny", folder)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"text_config": [1]}, r"text_config is \[1\], not an object"),
        ({"text_config": {"rope_scaling": ["x"]}}, r"text_config: rope_scaling is \['x'\], not an object"),
        ({"text_config": {"rope_parameters": "rope_theta"}}, "text_config: rope_parameters is 'rope_theta'"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\], not a text"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', not an object"),
    ],
)
def test_a_config_whose_parts_have_other_types(config: dict[str, Any], problem: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=problem):
        hub.read_config(folder)
