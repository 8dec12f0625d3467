"""Small vocabularies of every kind, and model folders that hold one."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import strategies as st

from mdi.text.tokenizer import Tokenizer, tokenizer_for
from mdi.text.vocabulary import load_vocabulary

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
CORPUS = [
    "a ring of small machines shares one model",
    "hello world, hello ring: one token after another",
    "naïve café, ein schöner Tag",
] * 10
SPACE = "\u2581"


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def byte_level_json(*, bos: str | None = None) -> str:
    """A GPT-2 kind of tokenizer.json; `bos` is what its post-processor puts first."""
    from tokenizers import Tokenizer as Processor
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    processor = Processor(models.BPE())
    processor.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    processor.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    processor.train_from_iterator(CORPUS, trainer)
    processor.add_tokens(["  two spaces  ", "<Räume>"])
    if bos is not None:
        processor.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, processor.token_to_id(bos))]
        )
    processor.enable_truncation(8)
    return str(processor.to_str())


def llama2_json() -> str:
    """A Llama 2 kind of tokenizer.json: SentencePiece pieces, bytes for what they lack, BOS in front."""
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from tokenizers import Tokenizer as Processor

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [SPACE, *"abcdefghijklmnopqrstuvwxyz", f"{SPACE}h", "el", "lo", f"{SPACE}hel", f"{SPACE}hello"]
    merges = [(SPACE, "h"), ("e", "l"), ("l", "o"), (f"{SPACE}h", "el"), (f"{SPACE}hel", "lo")]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    processor = Processor(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    processor.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    processor.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    processor.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    processor.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return str(processor.to_str())


def sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return out.getvalue()


def llama3_model(extra: Iterable[bytes] = (b"he", b"ll", b"hell", b"hello", b" w", b"\xc3\xa9")) -> bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), *extra]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    return "".join(lines).encode()


N_LLAMA3_RANKS = 256 + 6
VOCABULARIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "byte-level": ("tokenizer.json", lambda: byte_level_json().encode()),
    "llama2-json": ("tokenizer.json", lambda: llama2_json().encode()),
    "sentencepiece": ("tokenizer.model", sentencepiece_model),
    "llama3": ("tokenizer.model", llama3_model),
}


@cache
def vocabulary(kind: str) -> tuple[str, bytes]:
    name, make = VOCABULARIES[kind]
    return name, make()


def model_folder(folder: Path, kind: str, **config: object) -> Path:
    """Write the vocabulary and, if there is any `config`, a tokenizer_config.json into `folder`."""
    name, data = vocabulary(kind)
    (folder / name).write_bytes(data)
    if config:
        write_json(folder / "tokenizer_config.json", config)
    return folder


def local_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, without a worker: its vocabulary is no stranger's."""
    return tokenizer_for(folder, load_vocabulary(folder))


@cache
def shared_tokenizer(kind: str) -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return local_tokenizer(model_folder(Path(folder), kind))


ALL_KINDS = pytest.mark.parametrize("kind", VOCABULARIES)

# Any text without the names of special tokens, which are not shown again.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE), max_size=30).filter(
    lambda text: not re.search(r"<\||</?s>|<unk>", text)
)
