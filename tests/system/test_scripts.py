"""The scripts do what their users expect, as processes on real sockets."""

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mdi.checkpoint.config import load_config
from mdi.checkpoint.manifest import chunk_name, chunks_folder, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.cli.run_statistics import RUN_CSV_HEADER
from mdi.cli.token_times import read_token_csv
from mdi.config.paths import IMAGES_DIR, LOGS_DIR
from support.models import make_model
from support.paths import SRC
from support.rings import ring_of
from support.scripts import (
    SCRIPTS,
    Network,
    Process,
    Result,
    Scripts,
    WarmPython,
    one_line_error,
    ports_in_use,
    read_samples,
    removed_afterwards,
    samples_of,
    state_of,
    wait_until,
    without_announcement,
    write_network,
)

pytestmark = pytest.mark.slow

N_TOKENS = 20
STATS_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,3,6,\d+,\d+(\.\d+)?")
RATE_LINE = re.compile(r"Generated (\d+) tokens in [\d.]+ s: [\d.]+ tokens/s\n")
SEEDED = ("--seed", 5, "--n-tokens", N_TOKENS, "--dtype", "float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "org" / "tiny-of-the-scripts")


def start(scripts: Scripts, network: Network, model: Path, *arguments: object, **how: Any) -> Process:
    return scripts.start("starter.py", "--ckpt", model, "--nodes-config", network.path, *arguments, **how)


def run(scripts: Scripts, network: Network, model: Path, *arguments: object, **how: Any) -> Result:
    result = start(scripts, network, model, *arguments, **how).result()
    assert result.code == 0, result.stderr
    return result


def run_alone(scripts: Scripts, alone: Network, model: Path, *arguments: object, **how: Any) -> Result:
    """The standalone ring, whose text is that of any other in float32."""
    arguments = ("sample.py", "--ckpt", model, "--nodes-config", alone.path, "--n-samples", 3, *arguments)
    result = scripts.run(*map(str, arguments), **how)
    assert result.code == 0, result.stderr
    return result


# ---- the main job, from cold


@dataclass(frozen=True)
class MainJob:
    """Three processes, three samples, every file that a run can leave."""

    network: Network
    result: Result
    secondaries: list[Result]
    time_run: Path
    output: Path
    csv: Path
    png: Path


@pytest.fixture(scope="module")
def cold_network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return write_network(tmp_path_factory.mktemp("cold") / "net.json", 3)


def run_cold(scripts: Scripts, network: Network, model: Path, *arguments: object) -> tuple[Result, list[Result]]:
    secondaries = scripts.secondaries(network, cold=True)
    starter = start(scripts, network, model, "--n-tokens", N_TOKENS, *arguments, cold=True)
    return starter.result(120), [secondary.result() for secondary in secondaries]


@pytest.fixture(scope="module")
def main_job(cold_network: Network, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainJob]:
    folder = tmp_path_factory.mktemp("main")
    names = f"3nodes_{tiny.name}_3samples"
    csv, png = LOGS_DIR / f"tokens_time_samples_{names}.csv", IMAGES_DIR / f"tokens_time_{names}.png"
    time_run, output = folder / "runs.csv", folder / "out.jsonl"
    with removed_afterwards(csv, png), Scripts(folder / "processes") as scripts:
        files = ("-p", "--time-run", time_run, "--output", output)
        result, secondaries = run_cold(scripts, cold_network, tiny, *files)
        yield MainJob(cold_network, result, secondaries, time_run, output, csv, png)


def test_all_three_processes_end_well(main_job: MainJob) -> None:
    assert main_job.result.code == 0, main_job.result.stderr
    for secondary in main_job.secondaries:
        assert (secondary.code, secondary.stdout) == (0, ""), secondary.stderr
        assert "Traceback" not in secondary.stderr
    assert ports_in_use(main_job.network.ports) == []


def test_stdout_carries_the_samples_and_the_rate_and_nothing_else(main_job: MainJob) -> None:
    samples, _ = read_samples(main_job.output)
    shown = "".join(f"--- sample {i} ---\nWho are you?\n>>> {s['completion']}\n" for i, s in enumerate(samples, 1))
    stdout = main_job.result.stdout
    assert samples_of(stdout) == universal_newlines(shown)
    rate = RATE_LINE.fullmatch(stdout.removeprefix(universal_newlines(shown)))
    assert rate is not None
    assert int(rate[1]) == 3 * N_TOKENS


def universal_newlines(text: str) -> str:
    """As `Path.read_text` shows it: random models generate control characters too."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_stderr_tells_where_the_files_are_and_little_else(main_job: MainJob) -> None:
    lines = without_announcement(main_job.result.stderr).splitlines()
    assert [line for line in lines if "waiting for secondary" not in line] == [
        f"Tokens over time: {main_job.csv} and {main_job.png}"
    ]


def test_the_output_file_has_a_line_for_each_sample_and_the_summary_last(main_job: MainJob) -> None:
    samples, summary = read_samples(main_job.output)
    assert [sample["sample"] for sample in samples] == [0, 1, 2]
    for sample in samples:
        assert list(sample) == [
            "sample", "prompt", "completion", "prompt_tokens", "cached_tokens", "tokens", "finish_reason", "seconds"
        ]  # fmt: skip
        assert (sample["prompt"], sample["prompt_tokens"], sample["finish_reason"]) == ("Who are you?", 12, "length")
        assert len(sample["tokens"]) == N_TOKENS
        assert 0 < sample["seconds"] < 60
    assert len({tuple(sample["tokens"]) for sample in samples}) == 3  # a generator of its own for each
    assert list(summary) == ["n_nodes", "n_samples", "n_tokens", "gen_time", "tokens_per_s", "seed", "recoveries"]
    assert (summary["n_nodes"], summary["n_samples"], summary["n_tokens"]) == (3, 3, 3 * N_TOKENS)
    assert (summary["seed"], summary["recoveries"]) == (10137, 0)
    assert summary["tokens_per_s"] == pytest.approx(summary["n_tokens"] / summary["gen_time"])


def test_the_tokens_over_time_have_a_line_for_each_token_from_zero_on(main_job: MainJob) -> None:
    lines = main_job.csv.read_text().splitlines()
    assert lines[0] == "0,0"
    points = read_token_csv(main_job.csv)
    assert [tokens for _, tokens in points] == list(range(3 * N_TOKENS + 1))
    seconds = [second for second, _ in points]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(read_samples(main_job.output)[1]["gen_time"], abs=1e-5)
    assert main_job.png.read_bytes().startswith(b"\x89PNG")


def test_cold_runs_follow_each_other_on_the_same_ports(main_job: MainJob, tiny: Path, tmp_path: Path) -> None:
    """The main job was the first; each has the same text, and its line in the file of statistics. The soak has 200."""
    for i in range(1, 5):
        with Scripts(tmp_path / f"run{i}") as scripts:
            result, secondaries = run_cold(scripts, main_job.network, tiny, "--time-run", main_job.time_run)
        assert result.code == 0, f"run {i}: {result.stderr}"
        assert [secondary.code for secondary in secondaries] == [0, 0], [s.stderr for s in secondaries]
        assert samples_of(result.stdout) == samples_of(main_job.result.stdout)
    header, *rows = main_job.time_run.read_text().splitlines()
    assert header == RUN_CSV_HEADER
    assert len(rows) == 5
    assert all(STATS_LINE.fullmatch(row) for row in rows)
    assert {row.split(",")[3] for row in rows} == {str(12 + N_TOKENS)}  # the context that a run needs


# ---- a ring with a key


def test_a_ring_with_a_key_serves_who_has_it_and_shows_it_to_nobody(
    scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    network, secret = write_network(tmp_path / "net.json", 2), "correct horse battery staple"
    logs = [LOGS_DIR / "logs_starter.log", LOGS_DIR / "logs_secondary0.log"]
    with removed_afterwards(*logs):
        (secondary,) = scripts.secondaries(network, "-d", env={"MDI_KEY": secret})
        secondary.wait_for("waiting for a starter")
        stranger = start(scripts, network, tiny, *SEEDED).result()
        one_line_error(stranger, 1, "secondary 0 at .* refused: this ring has a key and the caller has none")
        result = run(scripts, network, tiny, "-v", "-d", *SEEDED, env={"MDI_KEY": f" {secret}\n"})
        ended = secondary.result()
        said = [text for done in (stranger, result, ended) for text in (done.stdout, done.stderr)]
        said += [log.read_text() for log in logs]
    assert ended.code == 0
    assert result.stdout.startswith("--- sample 1 ---\n")
    assert "refused POST /init from 127.0.0.1: this ring has a key and the caller has none" in ended.stderr
    assert secret not in "".join(said)
    assert "is ready" in result.stderr


# ---- secondaries that are kept


@dataclass(frozen=True)
class Kept:
    network: Network
    secondaries: list[Process]
    cache: Path
    first: Result  # of --seed 5


@pytest.fixture(scope="module")
def kept(warm: WarmPython, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """A network of three nodes that has served one run and waits."""
    folder = tmp_path_factory.mktemp("kept")
    network = write_network(folder / "net.json", 3)
    with Scripts(folder / "processes", warm) as scripts:
        secondaries = scripts.secondaries(network, "--dtype", "float32")
        first = run(scripts, network, tiny, "-v", "--keep-nodes", *SEEDED)
        yield Kept(network, secondaries, folder / "processes" / "cache", first)


def test_verbose_says_on_stderr_what_happens(kept: Kept) -> None:
    assert "sending model_secondary0.pth to secondary 0" in kept.first.stderr
    ready = r"^%s is ready: layers? \d.*, float32 on cpu, weights of [\d.]+ \w+; memory: .* so far, .* free$"
    for name in ("starter", "secondary 0", "secondary 1"):
        assert re.search(ready % name, kept.first.stderr, re.MULTILINE), kept.first.stderr
    assert kept.first.stdout.startswith("--- sample 1 ---\nWho are you?\n>>> ")


def test_a_second_run_sends_no_chunk_again(kept: Kept, scripts: Scripts, tiny: Path) -> None:
    files = {path: path.stat().st_ino for path in kept.cache.glob("*.pth")}
    assert len(files) == 2
    result = run(scripts, kept.network, tiny, "-v", "--keep-nodes", *SEEDED, "--seed", 6)
    assert "sending" not in result.stderr
    assert "is ready" in result.stderr
    assert {path: path.stat().st_ino for path in kept.cache.glob("*.pth")} == files
    assert samples_of(result.stdout) != samples_of(kept.first.stdout)
    assert all(secondary.alive for secondary in kept.secondaries)


def test_a_new_process_finds_its_chunk_in_the_cache(kept: Kept, scripts: Scripts, tiny: Path, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 3)
    cache = ("--cache-dir", kept.cache)
    for index in (0, 1):
        scripts.start("secondary.py", *cache, "--dtype", "float32", "--nodes-config", network.path, index)
    result = run(scripts, network, tiny, "-v", *SEEDED)
    assert "sending" not in result.stderr
    assert samples_of(result.stdout) == samples_of(kept.first.stdout)


def test_the_text_does_not_depend_on_the_nodes(kept: Kept, scripts: Scripts, alone: Network, tiny: Path) -> None:
    assert samples_of(run_alone(scripts, alone, tiny, *SEEDED).stdout) == samples_of(kept.first.stdout)


def test_quiet_leaves_the_texts_alone(scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run_alone(scripts, alone, tiny, *SEEDED, "-q", "--output", output)
    samples, _ = read_samples(output)
    texts = "\n".join(f"{sample['completion']}\n" for sample in samples)
    assert (result.stdout, result.stderr) == (universal_newlines(texts), "")


def test_the_flags_of_sampling_reach_the_samples(scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    forced = ("--min-p", 0.5, "--logit-bias", "40=100", "--logit-bias", "41=100", "--presence-penalty", 2)
    run_alone(scripts, alone, tiny, *SEEDED, *forced, "--logprobs", 2, "--output", output)
    samples, _ = read_samples(output)
    for sample in samples:
        assert set(sample["tokens"]) <= {40, 41}
        assert [chosen["token"] for chosen in sample["logprobs"]] == sample["tokens"]
        assert all(len(chosen["top_logprobs"]) == 2 for chosen in sample["logprobs"])


def test_a_closed_stdout_is_as_dev_null(scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, SRC / "sample.py", "--ckpt", tiny, "--nodes-config", alone.path, "--output", output]
    words = " ".join(shlex.quote(str(word)) for word in [*command, "--n-tokens", 2])
    done = subprocess.run(["sh", "-c", f"exec {words} >&-"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    samples, _ = read_samples(output)
    assert [len(sample["tokens"]) for sample in samples] == [2]


def test_streaming_another_split_and_a_debug_log_change_no_text(
    kept: Kept, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    log = LOGS_DIR / "logs_starter.log"
    before = read_manifest(chunks_folder(tiny, 3))
    assert before is not None
    with removed_afterwards(log):
        options = ("--keep-nodes", *SEEDED, "--stream", "-d", "--split", "3,2,1")
        result = run(scripts, kept.network, tiny, *options)
        text = log.read_text()
    assert samples_of(result.stdout) == samples_of(kept.first.stdout)
    assert without_announcement(result.stderr) == ""  # the log is a file
    assert "DEBUG" in text or "INFO" in text
    after = read_manifest(chunks_folder(tiny, 3))
    assert after is not None
    assert [len(span) for span in after.spans] == [3, 2, 1] != [len(span) for span in before.spans]
    # `auto` takes the split that is there.
    result = run(scripts, kept.network, tiny, "--keep-nodes", *SEEDED)
    assert read_manifest(chunks_folder(tiny, 3)) == after
    assert samples_of(result.stdout) == samples_of(kept.first.stdout)


@pytest.mark.parametrize("n_samples", [1, 7])
def test_fewer_and_more_samples_than_nodes(
    n_samples: int, kept: Kept, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    """Three prompts: one sample takes the first, seven take each in turn."""
    prompts = ["Once upon a time", "Water\nand a second line", "Ünïcödé 日本語"]
    path, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text("\n\n\n".join(prompts) + "\n\n", encoding="utf-8")
    options = ("--n-samples", n_samples, "--prompt", f"FILE:{path}", "--output", output, "--keep-nodes", *SEEDED)
    result = run(scripts, kept.network, tiny, *options)
    samples, summary = read_samples(output)
    assert [sample["prompt"] for sample in samples] == (prompts * 3)[:n_samples]
    assert [len(sample["tokens"]) for sample in samples] == [N_TOKENS] * n_samples
    assert summary["n_tokens"] == n_samples * N_TOKENS
    assert re.findall(r"^--- sample (\d+) ---$", result.stdout, re.M) == [str(i + 1) for i in range(n_samples)]


def test_samples_end_on_their_own_where_the_context_ends(
    kept: Kept, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    """The README's own `--n-tokens 500 --block-size 500`, with prompts of different lengths."""
    path, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    path.write_text(f"{'x' * 10}\n\n{'y' * 38}\n\n{'z' * 25}\n")
    options = ("--prompt", f"FILE:{path}", "--output", output, "--keep-nodes", "--dtype", "float32")
    result = run(scripts, kept.network, tiny, *options, "--n-tokens", 40, "--block-size", 40)
    lines = [json.loads(line) for line in output.read_text().splitlines()[:-1]]
    assert [line["sample"] for line in lines] == [1, 2, 0]  # as they end
    assert [len(line["tokens"]) for line in lines] == [2, 15, 30]
    assert {line["finish_reason"] for line in lines} == {"length"}
    assert re.fullmatch(
        r".*longest prompt of 38 tokens and --n-tokens 40 exceed the context of 40.*\n",
        without_announcement(result.stderr),
    )


def test_a_stop_token_ends_its_sample_and_is_not_shown(
    kept: Kept, scripts: Scripts, tiny: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run(scripts, kept.network, tiny, "--keep-nodes", *SEEDED, "--output", output)
    free, _ = read_samples(output)
    stop = free[1]["tokens"][4]
    model = Path(shutil.copytree(tiny, tmp_path / "org" / "stopping"))
    (model / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": [stop]}))
    run(scripts, kept.network, model, "--keep-nodes", *SEEDED, "--output", output)
    stopped, _ = read_samples(output)
    for before, after in zip(free, stopped, strict=True):
        n = before["tokens"].index(stop) if stop in before["tokens"] else N_TOKENS
        assert after["tokens"] == before["tokens"][:n]
        assert after["finish_reason"] == ("stop" if n < N_TOKENS else "length")
    assert len(stopped[1]["tokens"]) <= 4
    run(scripts, kept.network, model, "--keep-nodes", *SEEDED, "--output", output, "--ignore-eos")
    assert [sample["tokens"] for sample in read_samples(output)[0]] == [sample["tokens"] for sample in free]


def test_a_reader_that_has_seen_enough_is_no_failure(kept: Kept, scripts: Scripts, tiny: Path) -> None:
    reading, writing = os.pipe()
    try:
        options = ("--keep-nodes", "--n-tokens", 100, "--stream", "--dtype", "float32")
        starter = start(scripts, kept.network, tiny, *options, stdout=writing)
        os.close(writing)
        assert os.read(reading, 5) == b"--- s", starter.result().stderr
    finally:
        os.close(reading)
    result = starter.result()
    assert (result.code, without_announcement(result.stderr)) == (0, "")
    for node in (1, 2):
        port = kept.network.http_port(node)
        wait_until(lambda port=port: state_of(port) == "idle", 60, "the secondaries wait again")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("script", ["starter.py", "sample.py", "secondary.py", "prepare_model.py"])
def test_help_that_nobody_reads_is_no_failure(script: str, unbuffered: str, scripts: Scripts) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = scripts.run(script, "--help", cold=True, stdout=writing, env={"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(writing)
    assert (result.code, without_announcement(result.stderr)) == (0, "")


def test_help_on_a_full_disk_is_one_line(scripts: Scripts) -> None:
    """Of a stdout without a buffer, argparse itself drops the error."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        result = scripts.run("starter.py", "--help", cold=True, stdout=full, env={"PYTHONUNBUFFERED": ""})
    finally:
        os.close(full)
    one_line_error(result, 1, "the disk that the output goes to is full")


def test_secondaries_that_are_not_kept_end(kept: Kept, scripts: Scripts, tiny: Path) -> None:
    """The last test of these secondaries."""
    run(scripts, kept.network, tiny, *SEEDED)
    assert [secondary.result().code for secondary in kept.secondaries] == [0, 0]
    assert not any("Traceback" in secondary.stderr for secondary in kept.secondaries)
    assert ports_in_use(kept.network.ports) == []


# ---- where the weights come from


def test_chunks_from_a_file_from_a_folder_and_a_file_of_one_node(
    scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "net.json", 3)
    assert scripts.run("prepare_model.py", tiny, "--nodes-config", network.path).code == 0
    (tmp_path / "node.json").write_text(json.dumps(network.nodes[1]))
    copied = Path(shutil.copy(chunks_folder(tiny, 3) / chunk_name(1), tmp_path / "copied.pth"))
    log = LOGS_DIR / "logs_secondary.log"
    with removed_afterwards(log):
        first = scripts.start(
            "secondary.py", "-d", "--chunk", copied, "--nodes-config", tmp_path / "node.json", "--dtype", "float32"
        )
        options = ("--ckpt", tiny, "--cache-dir", tmp_path / "cache", "--dtype", "float32")
        second = scripts.start("secondary.py", *options, "--nodes-config", network.path, 1)
        result = run(scripts, network, tiny, "-v", *SEEDED)
        assert [first.result().code, second.result().code] == [0, 0]
        assert "weights of layer" in log.read_text()
    assert "sending" not in result.stderr
    assert not [*(tmp_path / "cache").glob("*.pth"), *(tmp_path / "cache").glob("*.partial")]  # nothing was received
    assert samples_of(result.stdout) == samples_of(run_alone(scripts, alone, tiny, *SEEDED).stdout)


def fused(weights: dict[str, torch.Tensor], n_groups: int, per_group: int, head_size: int) -> dict[str, torch.Tensor]:
    """qkv rows as the published program stored them: for each query group its queries, its key, its value."""
    result = {}
    for name, tensor in weights.items():
        if ".attn.qkv." not in name:
            result[name] = tensor
            continue
        q, k, v = tensor.split([n_groups * per_group * head_size, n_groups * head_size, n_groups * head_size])
        rows = []
        for group in range(n_groups):
            rows += q.split(per_group * head_size)[group], k.split(head_size)[group], v.split(head_size)[group]
        result[name.replace("attn.qkv", "attn.attn")] = torch.cat(rows)
    return result


def renumbered(weights: dict[str, torch.Tensor], first: int) -> dict[str, torch.Tensor]:
    """Layer numbers counted from `first`."""
    return {re.sub(r"(?<=\.h\.)\d+", lambda m: str(int(m[0]) - first), name): t for name, t in weights.items()}


@pytest.mark.parametrize("with_model", [True, False], ids=["beside the model", "chunks alone"])
def test_published_chunks_give_the_same_text(
    with_model: bool, scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    """Interleaved fused rows, layers renumbered from 0 on each secondary, no manifest: as people have them on disk."""
    expected = samples_of(run_alone(scripts, alone, tiny, *SEEDED).stdout)
    model = Path(shutil.copytree(tiny, tmp_path / "org" / tiny.name, ignore=shutil.ignore_patterns("chunks")))
    weights, config = open_weights(model / "lit_model.pth"), load_config(model)
    assert config.n_query_groups is not None and config.head_size is not None
    shape = (config.n_query_groups, config.n_head // config.n_query_groups, config.head_size)
    # without a manifest both sides know the split by its rule alone; this is the one it finds for this model
    assert scripts.run("prepare_model.py", model, "--n-nodes", 3).code == 0
    folder = chunks_folder(model, 3)
    manifest = read_manifest(folder)
    assert manifest is not None
    shutil.rmtree(folder)
    folder.mkdir()
    for node, span in enumerate(manifest.spans):
        part = {name: t.clone() for name, t in weights.items() if _belongs(name, range(*span), is_starter=node == 0)}
        torch.save(renumbered(fused(part, *shape), span.start), folder / chunk_name(node))
    if not with_model:
        (model / "lit_model.pth").unlink()
    network = write_network(tmp_path / "net.json", 3)
    copies = Path(shutil.copytree(folder, tmp_path / "copies"))
    for index in (0, 1):
        chunk = ("--chunk", copies / chunk_name(index + 1), "--dtype", "float32")
        scripts.start("secondary.py", *chunk, "--nodes-config", network.path, index)
    result = run(scripts, network, model, *SEEDED, "--chunk", copies / chunk_name(0))
    assert samples_of(result.stdout) == expected


def _belongs(name: str, layers: range, *, is_starter: bool) -> bool:
    match = re.search(r"\.h\.(\d+)\.", name)
    return is_starter if match is None else int(match[1]) in layers


# ---- the other scripts


def test_a_random_model_is_made_once_and_split_for_a_network(scripts: Scripts, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "random" / "pythia-14m"
    network = write_network(tmp_path / "net.json", 2)
    command = ("prepare_model.py", "--random", "pythia-14m", "--ckpt-folder", tmp_path / "checkpoints")
    made = scripts.run(*command, "--n-nodes", 3)
    assert made.code == 0, made.stderr
    assert re.fullmatch(rf"{folder}: layers per node \d, \d, \d\n", made.stdout)
    weights = folder / "lit_model.pth"
    before = weights.stat()
    again = scripts.run(*command, "--nodes-config", network.path, "--split", "1,5")
    assert again.stdout == f"{folder}: layers per node 1, 5\n", again.stderr
    assert "is prepared already" in again.stderr
    after = weights.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    names = {"model_starter.pth", "model_secondary0.pth", "manifest.json"}
    assert {path.name for path in chunks_folder(folder, 2).iterdir() if path.suffix != ".digest"} == names
    assert list((tmp_path / "checkpoints").rglob("*partial*")) == []
    other = scripts.run(*command, "--seed", 1)
    assert (other.code, other.stdout) == (2, "")
    assert other.stderr.startswith("error: ") and other.stderr.count("\n") == 1


def test_sample_runs_alone_under_the_memory_monitor(
    scripts: Scripts, alone: Network, tiny: Path, tmp_path: Path
) -> None:
    csv, png, output = tmp_path / "memory.csv", tmp_path / "memory.png", tmp_path / "out.jsonl"
    arguments = ["--ckpt", tiny, "--nodes-config", alone.path, "--n-tokens", 9, "--output", output]
    command = shlex.join([sys.executable, str(SCRIPTS / "sample.py"), *map(str, arguments)])
    result = scripts.run("mem_monitor.py", command, "-o", csv, "-i", 0.05, "--img", png)
    assert result.code == 0, result.stderr
    assert result.stdout.startswith("--- sample 1 ---\nWho are you?\n>>> ")
    _, *lines = csv.read_text().splitlines()
    assert max(int(line.split(",")[1]) for line in lines) > 100 << 20  # torch alone takes that much
    assert png.read_bytes().startswith(b"\x89PNG")
    samples, summary = read_samples(output)
    assert [len(sample["tokens"]) for sample in samples] == [9]  # one sample, by default
    assert summary["n_nodes"] == 1


def test_the_comparison_plot_is_drawn_from_the_runs_that_are_there(scripts: Scripts) -> None:
    model = "a-model-of-the-tests"
    csvs = [LOGS_DIR / f"tokens_time_samples_{n}nodes_{model}_2samples.csv" for n in (1, 3)]
    image = IMAGES_DIR / f"tokens_time_comparison_{model}_2samples.png"
    with removed_afterwards(*csvs, image):
        for csv in csvs:
            csv.parent.mkdir(exist_ok=True)
            csv.write_text("0,0\n0.5,1\n1,2\n")
        result = scripts.run("plot_tok_time.py", f"org/{model}", "--n-samples", 2)
        assert (result.code, result.stdout, result.stderr) == (0, f"{image}\n", "")
        assert image.read_bytes().startswith(b"\x89PNG")
        csvs[0].write_text("seconds,tokens\n")
        result = scripts.run("plot_tok_time.py", model, "--n-samples", 2)
        assert result.code == 2
        assert re.fullmatch(rf"error: {csvs[0]}: line 1 is .*\n", result.stderr)


def test_the_scripts_are_executable_from_any_folder() -> None:
    for script in SCRIPTS.glob("*.py"):
        assert script.stat().st_mode & stat.S_IXUSR, script
        assert script.read_text().startswith("#!/usr/bin/env python3\n")


# ---- many sessions


def test_sixty_sessions_on_kept_nodes_leave_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    """The soak has an hour of them."""
    process = psutil.Process()
    with ring_of(3, tmp_path / "cache") as ring:
        expected = ring.generate(tiny, n_tokens=2)
        settled = threading.active_count(), process.num_fds()
        for session in range(60):
            assert ring.generate(tiny, n_tokens=2) == expected, f"session {session}"
        wait_until(lambda: threading.active_count() <= settled[0], 60, "threads of the last session end")
        wait_until(lambda: process.num_fds() <= settled[1], 60, "descriptors of the last session are closed")
        assert not any(secondary.status().last_error for secondary in ring.secondaries)


def test_a_secondary_says_its_state_over_http(scripts: Scripts, tmp_path: Path) -> None:
    network = write_network(tmp_path / "net.json", 2)
    (secondary,) = scripts.secondaries(network)
    secondary.wait_for("waiting for a starter")
    assert state_of(network.http_port(1)) == "idle"
    secondary.send_signal(signal.SIGTERM)
    assert secondary.result().code == 143
