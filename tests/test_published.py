"""The published experiments: what is made of recorded runs, and what becomes of one that fails."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import published
from benchmarks.published_report import (
    BEGIN,
    END,
    MAX_POINTS,
    PUBLISHED,
    Experiment,
    Measured,
    filled,
    markdown,
    plot,
    points_of,
    read_json,
    write_json,
)
from benchmarks.rings import Request, Run
from benchmarks.workers import BenchError
from mdi.errors import ConfigError

MACHINE = {"date": "2026-11-26", "machine": "a test"}
THREE = Experiment(3, 800)
RUNS = [
    Measured("NanoLlama", 1, THREE, ((0.0, 0), (60.0, 2400))),
    Measured("NanoLlama", 2, THREE, ((0.0, 0), (30.0, 2400)), "other programs took 0.50 of 2 cores"),
    Measured("NanoLlama", 3, THREE, note="not measured: no memory"),
    Measured("gpt2", 1, Experiment(1, 400), ((0.0, 0), (0.1, 1), (4.0, 400))),
]


def test_tokens_of_all_samples_are_counted_in_the_order_of_their_times() -> None:
    assert points_of(10.0, [[10.5, 12.0], [11.0, 11.5]]) == ((0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4))


@pytest.mark.parametrize("n_tokens", [1, MAX_POINTS, MAX_POINTS + 1, 2400, 2401])
def test_a_curve_has_a_bounded_number_of_points_and_its_end(n_tokens: int) -> None:
    points = points_of(0.0, [[float(n) for n in range(1, n_tokens + 1)]])
    assert points[0] == (0.0, 0)
    assert points[-1] == (n_tokens, n_tokens)
    assert len(points) <= MAX_POINTS + 2
    assert all(seconds == n for seconds, n in points)


def test_runs_stand_beside_what_was_published_of_the_same_experiment() -> None:
    rows = markdown(MACHINE, RUNS).splitlines()
    assert "| 1 | 40.0 | 1.00x | 17.9 | 1.00x |  |" in rows
    assert "| 2 | 80.0 | 2.00x | 25.9 | 1.45x | other programs took 0.50 of 2 cores |" in rows
    assert "| 3 |  |  | 30.4 | 1.70x | not measured: no memory |" in rows


def test_what_was_not_published_is_not_shown() -> None:
    other = Measured("NanoLlama", 1, Experiment(1, 400), ((0.0, 0), (10.0, 400)))
    for run in (RUNS[-1], other):
        text = markdown(MACHINE, [run])
        assert "| nodes | tokens/s | over 1 node | note |" in text
    assert "gpt2: no figures were published" in markdown(MACHINE, RUNS)


def test_published_rates_are_those_of_the_curves() -> None:
    rates = [
        n_tokens / seconds for points in PUBLISHED["NanoLlama"].curves.values() for seconds, n_tokens in points[1:]
    ]
    assert rates == pytest.approx([17.9, 25.9, 30.4])
    for known in PUBLISHED.values():
        assert all(points[0] == (0, 0) and list(points) == sorted(points) for points in known.curves.values())


def test_tables_and_plots_are_made_anew_from_what_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.json"
    write_json(path, MACHINE, RUNS)
    assert read_json(path) == (MACHINE, RUNS)
    monkeypatch.setattr(sys, "argv", ["published.py", "--redraw", str(path)])
    published.main()
    assert path.with_suffix(".md").read_text(encoding="utf-8") in capsys.readouterr().out
    for name in ("runs-nanollama.png", "runs-gpt2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_on_performance_has_what_the_program_writes() -> None:
    text = published.PAGE.read_text(encoding="utf-8")
    section = text.partition(BEGIN)[2].partition(END)[0].strip()
    if section:
        (name,) = re.findall(r"\]\((\S+\.json)\)", section)
        path = published.PAGE.parent / name
        assert section == published.section(path, *read_json(path))
    assert filled(text, section or "x").count(BEGIN) == 1


def test_the_tables_are_put_into_the_page_in_place_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, path = tmp_path / "docs" / "page.md", tmp_path / "results" / "runs.json"
    page.parent.mkdir()
    page.write_text(f"Before.\n\n{BEGIN}\n\nearlier\n\n{END}\n\nBehind.\n", encoding="utf-8")
    monkeypatch.setattr(published, "PAGE", page)
    write_json(path, MACHINE, RUNS)
    for _ in range(2):
        published.report(path, MACHINE, RUNS, in_docs=True)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"Before.\n\n{BEGIN}\n\nWritten by") and text.endswith(f"{END}\n\nBehind.\n")
    assert "earlier" not in text
    assert "| 1 | 40.0 | 1.00x | 17.9 | 1.00x |  |" in text
    for image in re.findall(r"\]\((\S+)\)", text):
        assert (page.parent / image).is_file()
    with pytest.raises(ConfigError, match="no place for the published experiments"):
        filled("no marks", "text")


@pytest.mark.parametrize("content", [None, b"{", b"[1, 2"])
def test_what_was_not_recorded_is_not_drawn(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "runs.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_json(path)


def test_a_model_without_a_run_has_an_empty_plot(tmp_path: Path) -> None:
    plot(tmp_path / "empty.png", "a test", [Measured("gpt2", 1, THREE, note="not measured")])
    assert (tmp_path / "empty.png").is_file()


class FakeRing:
    """Generates a token of each sample a second."""

    def prepare(self, request: Request) -> None:
        if request.n_samples == 3:
            raise BenchError("no memory")
        self._request = request

    def go(self) -> None: ...

    def result(self) -> Run:
        times = [float(second) for second in range(1, self._request.n_tokens + 1)]
        return Run(0.0, [times] * self._request.n_samples, [])


def test_what_fails_is_told_and_the_rest_is_measured() -> None:
    @contextlib.contextmanager
    def open_ring(n_nodes: int) -> Iterator[FakeRing]:
        if n_nodes == 2:
            raise BenchError("port taken")
        yield FakeRing()

    one, several = experiments = published.experiments_of("NanoLlama", quick=True)
    assert (one, several) == (Experiment(1, 40), Experiment(3, 80))
    runs = list(published.measure("NanoLlama", experiments, 2, open_ring))  # type: ignore[arg-type]
    assert [(run.n_nodes, run.experiment) for run in runs] == [(n, each) for n in (1, 2, 3) for each in experiments]
    assert [run.points[-1:] for run in runs] == [((40.0, 40),), (), (), (), ((40.0, 40),), ()]
    assert [run.note for run in runs if not run.points] == [
        "not measured: no memory", "not measured: port taken", "not measured: port taken", "not measured: no memory",
    ]  # fmt: skip
    assert "3 nodes share 2 cores" in runs[4].note
