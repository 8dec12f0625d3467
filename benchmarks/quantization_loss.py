#!/usr/bin/env python3
"""What quantized weights, keys and values cost in quality, and what they save, on a text that is in the public domain.

    python benchmarks/quantization_loss.py
    python benchmarks/quantization_loss.py --ckpt DIR --tokens 2048 --modes none int8 --kv-dtypes float32 int8
    python benchmarks/quantization_loss.py --modes none int8 --backend torch

Prints a Markdown table. All is computed in float32 by a node's own stage; the others are held against the first mode.
"""

import argparse
import math
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean as mean

import psutil
import torch
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from mdi.checkpoint.chunks import split_model  # noqa: E402
from mdi.checkpoint.config import CONFIG_FILE, load_config  # noqa: E402
from mdi.checkpoint.tensor_file import open_weights  # noqa: E402
from mdi.checkpoint.weights import whole_models  # noqa: E402
from mdi.config.paths import CHECKPOINTS_DIR  # noqa: E402
from mdi.formats import BACKEND_CHOICES, KV_DTYPES, MODES, BackendChoice, KvDtype, Mode  # noqa: E402
from mdi.model.backends.select import make_head, make_span_engine  # noqa: E402
from mdi.model.build import Placement  # noqa: E402
from mdi.model.span import Span  # noqa: E402
from mdi.model.stage import Stage, kept_rows  # noqa: E402
from mdi.segments import Segment  # noqa: E402
from mdi.text.tokenizer import load_tokenizer  # noqa: E402
from mdi.text.worker_process import TextWorker  # noqa: E402

TEXT = ROOT / "benchmarks" / "public_domain_text.txt"
WINDOW = 1024  # tokens that are seen together; the first of each window is not predicted
MESSAGE_ROWS = 128
N_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 64
Ids = list[int]


@dataclass(frozen=True)
class Result:
    """What a model made of the text, in one mode and with one kind of keys and values."""

    chunk_bytes: int
    resident_bytes: int  # of the loaded stage and head
    losses: list[float]  # of each predicted token, in nats
    best: Ids  # the likeliest token behind each token of the text
    continuations: list[Ids]


class Model:
    """A whole model as one stage, loaded from a chunk."""

    def __init__(self, folder: Path, chunk: Path, kv_dtype: KvDtype | None, backend: BackendChoice) -> None:
        config, weights = load_config(folder), open_weights(chunk)
        placement = Placement(torch.device("cpu"), torch.float32, kv_dtype=kv_dtype, rows=N_PROMPTS, backend=backend)
        self._stage = Stage(make_span_engine(config, Span(0, config.n_layer), weights, placement))
        self._head = make_head(config, weights, placement)

    def logits(self, ids: Sequence[int], segments: Sequence[Segment]) -> torch.Tensor:
        """Token ids of a message's rows -> the logits (K, vocabulary) of the rows that segments keep."""
        positions = [position for segment in segments for position in range(segment.start, segment.stop)]
        return self._head.logits(kept_rows(self._stage.forward(self._head.embed(ids, positions), segments), segments))

    def read(self, window: Sequence[int]) -> Iterator[torch.Tensor]:
        """The logits behind each token of a window, message by message."""
        self._stage.allocate(1, len(window))
        for start in range(0, len(window), MESSAGE_ROWS):
            ids = window[start : start + MESSAGE_ROWS]
            yield self.logits(ids, [Segment(0, start, len(ids), len(ids))])

    def continue_greedily(self, prompts: Sequence[Ids], n_tokens: int) -> list[Ids]:
        """The next `n_tokens` of each prompt; all prompts are equally long and travel together."""
        length, slots = len(prompts[0]), range(len(prompts))
        self._stage.allocate(len(prompts), length + n_tokens)
        columns = [[int(self.logits(prompts[slot], [Segment(slot, 0, length, 1)]).argmax()) for slot in slots]]
        for position in range(length, length + n_tokens - 1):
            rows = self.logits(columns[-1], [Segment(slot, position, 1, 1) for slot in slots])
            columns.append(rows.argmax(-1).tolist())
        return [list(tokens) for tokens in zip(*columns, strict=True)]


def read_windows(folder: Path, n_tokens: int) -> list[Ids]:
    """The text in windows, as many as are full. Its lines are joined, paragraphs too."""
    with TextWorker() as worker:
        ids = load_tokenizer(folder, worker).encode(" ".join(TEXT.read_text(encoding="utf-8").split()))
    return [ids[start : start + WINDOW] for start in range(0, min(n_tokens, len(ids)) - WINDOW + 1, WINDOW)]


def prompts_of(windows: Sequence[Ids]) -> list[Ids]:
    """Equally long prompts from places that are spread evenly over the text."""
    ids = [token for window in windows for token in window]
    return [ids[start : start + PROMPT_TOKENS] for start in range(0, len(ids), len(ids) // N_PROMPTS)][:N_PROMPTS]


def measure(
    folder: Path,
    chunk: Path,
    windows: Sequence[Ids],
    n_new: int,
    kv_dtype: KvDtype | None = None,
    backend: BackendChoice = "auto",
) -> Result:
    """Load a chunk and let it read and write. Wants a process of its own, for the memory's sake."""
    torch.set_num_threads(1)
    memory = psutil.Process().memory_info
    before_bytes = memory().rss
    model = Model(folder, chunk, kv_dtype, backend)
    resident_bytes = memory().rss - before_bytes
    losses, best = [], []
    for window in windows:
        logits = torch.cat(list(model.read(window)))
        best += logits.argmax(-1).tolist()
        losses += cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="none").tolist()
    continuations = model.continue_greedily(prompts_of(windows), n_new)
    return Result(chunk.stat().st_size, resident_bytes, losses, best, continuations)


def measure_mode(
    folder: Path,
    mode: Mode,
    kv_dtypes: Sequence[KvDtype | None],
    windows: Sequence[Ids],
    n_new: int = NEW_TOKENS,
    backend: BackendChoice = "auto",
) -> dict[str, Result]:
    """Write the model as one chunk in a mode, and measure it with each kind of keys and values, in new processes."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for path in (folder / CONFIG_FILE, *whole_models(folder)):
            (Path(scratch) / path.name).symlink_to(path.resolve())
        manifest = split_model(Path(scratch), [Span(0, load_config(folder).n_layer)], quantization=mode)
        chunk = manifest.folder / manifest.files[0].name
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            return {
                label(mode, kv_dtype): pool.apply(measure, (folder, chunk, windows, n_new, kv_dtype, backend))
                for kv_dtype in kv_dtypes
            }


def label(mode: Mode, kv_dtype: KvDtype | None) -> str:
    """What a row of the table is called."""
    return mode if kv_dtype is None else f"{mode}, keys and values {kv_dtype}"


def common_share(tokens: Ids, reference: Ids) -> float:
    """How much of a continuation comes before its first difference."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, reference, strict=True))) / len(
        reference
    )


def row(mode: str, result: Result, reference: Result) -> str:
    """A line of the table. The ratio's uncertainty is its standard error over the predicted tokens."""
    excess = torch.tensor(result.losses) - torch.tensor(reference.losses)
    ratio, error = math.exp(excess.mean()), float(excess.std()) / math.sqrt(len(excess))
    agreement = mean(a == b for a, b in zip(result.best, reference.best, strict=True))
    shared = mean(map(common_share, result.continuations, reference.continuations))
    return (
        f"| {mode} | {math.exp(mean(result.losses)):.2f} | {ratio - 1:+.2%} ± {ratio * error:.2%} | {agreement:.1%}"
        f" | {shared:.1%} | {result.chunk_bytes / 1e6:.1f} | {result.resident_bytes / 1e6:.0f} |"
    )


def table(results: Mapping[str, Result]) -> str:
    """The Markdown table of all results, the first of which is the reference."""
    first, reference = next(iter(results.items()))
    head = f"| weights | perplexity | over {first} | same best token | same text | chunk, MB | loaded, MB |"
    return "\n".join([head, "|---" * 7 + "|", *(row(mode, results[mode], reference) for mode in results)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINTS_DIR / "local" / "SmolLM2-135M-Instruct")
    parser.add_argument("--tokens", type=int, default=10_000, help="most tokens of the text to read")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--kv-dtypes", nargs="+", choices=KV_DTYPES, default=[None], help="default: a node's own")
    parser.add_argument("--backend", choices=BACKEND_CHOICES, default="auto", help="default: what a node takes")
    options = parser.parse_args()
    windows = read_windows(options.ckpt, options.tokens)
    if not windows:
        parser.error(f"--tokens {options.tokens}: at least one window of {WINDOW} is needed")
    print(f"{len(windows)} windows of {WINDOW} tokens; {N_PROMPTS} prompts, {NEW_TOKENS} tokens each\n")
    results: dict[str, Result] = {}
    for mode in options.modes:
        results |= measure_mode(options.ckpt, mode, options.kv_dtypes, windows, backend=options.backend)
    print(table(results))


if __name__ == "__main__":
    main()
