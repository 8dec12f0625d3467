"""litgpt on one device with one thread: `python -m benchmarks.litgpt_driver FOLDER DEVICE DTYPE` answers JSON lines."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.generate.base import generate_fn
from litgpt.model import GPT

from benchmarks.workers import answer, requests


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> GPT:
    """litgpt's own model with the folder's weights."""
    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "lit_model.pth", mmap=True, weights_only=True), assign=True)
    return model.to(device, dtype).eval()


def generate(model: GPT, prompt: list[int], n_tokens: int) -> dict[str, Any]:
    """One greedy sample: when each token was known, and the tokens."""
    ids = torch.tensor(prompt, device=model.lm_head.weight.device)
    model.clear_kv_cache()
    model.max_seq_length = len(prompt) + n_tokens
    model.set_kv_cache(batch_size=1, device=ids.device, dtype=model.lm_head.weight.dtype)
    start, times, tokens = time.monotonic(), [], []
    for token in generate_fn(
        model, ids, len(prompt) + n_tokens, temperature=0.0, include_prompt=False, include_eos=True
    ):
        times.append(time.monotonic())
        tokens.append(int(token))
    return {"start": start, "times": [times], "tokens": [tokens]}


def main() -> None:
    torch.set_num_threads(1)
    folder, device, dtype = sys.argv[1:]
    model = load(Path(folder), torch.device(device), getattr(torch, dtype))
    answer({"ready": True})
    for request in requests():
        answer(generate(model, request["prompt"], request["n_tokens"]))


if __name__ == "__main__":
    main()
