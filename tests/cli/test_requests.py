"""The samples that a run is asked for."""

from pathlib import Path

import pytest

from mdi.checkpoint.folder import open_folder
from mdi.cli import requests
from mdi.config.options import StarterOptions
from mdi.text.worker_process import TextWorker


def test_each_prompt_is_encoded_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding takes longer than anything else that is done for one of thousands of samples."""
    encoded, encode = list[str](), requests.encode_prompt

    def count(tokenizer: object, style: object, prompt: str) -> list[int]:
        encoded.append(prompt)
        return encode(tokenizer, style, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(requests, "encode_prompt", count)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\nanother\n", encoding="utf-8")
    options = StarterOptions(ckpt=tiny, prompt=f"FILE:{prompts}", n_samples=5)
    with TextWorker() as worker:
        found = requests.load_requests(options, open_folder(tiny, 1, None, None), worker)
    assert encoded == ["one", "another"]
    first, second = found.samples[:2]
    assert first.prompt != second.prompt
    assert [sample.prompt for sample in found.samples[2:]] == [first.prompt, second.prompt, first.prompt]
