"""Every kind of file and answer that somebody else writes, with a valid one, and what reads it."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import yaml
from litgpt.config import Config
from safetensors.torch import save

from mdi.checkpoint.config import CONFIG_FILE, config_from_dict, load_config
from mdi.checkpoint.digests import read_digests
from mdi.checkpoint.manifest import MANIFEST_FILE, chunk_name, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.cli.memory_monitor import read_memory_csv
from mdi.cli.origin import ORIGIN_FILE, Origin, compare_origin
from mdi.cli.run_statistics import RUN_CSV_HEADER, check_run_csv
from mdi.cli.token_times import read_token_csv
from mdi.config.network import load_network, load_node
from mdi.control.session import SessionSpec
from mdi.control.status import NodeStatus, init_answer_from_json
from mdi.convert.gguf.config import build_config
from mdi.convert.gguf.file import open_gguf
from mdi.convert.hf_configs import resolve_config_name
from mdi.convert.hub import read_config
from mdi.convert.huggingface import _indexed
from mdi.convert.nanogpt import _config_of
from mdi.convert.nanogpt_tokenizer import _characters, _published_pairs
from mdi.convert.weight_files import open_weight_file
from mdi.documents import parse_json
from mdi.errors import ControlError, MdiError
from mdi.net.key_sources import key_from_file
from mdi.ring.wire import _read_facts
from mdi.text.chat_template import load_chat_template
from mdi.text.prompts import load_prompts
from mdi.text.styles import _saved_class
from mdi.text.tokenizer_config import read_tokenizer_config, special_ids, token_text
from support.control import SPEC
from support.gguf_files import N_TOKENS, hyperparameters, tensors, tiny_model, write_gguf
from support.models import BASE
from support.paths import ROOT
from support.statuses import READY

DIGEST = "ab" * 32


class Reader(NamedTuple):
    """One kind of file, and what reads it."""

    file: str
    content: bytes
    read: Callable[[Path], object]
    n_ways: int = 1000  # in which the test damages it; fewer where one reading takes milliseconds


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def hugging_face_config(path: Path) -> str:
    return resolve_config_name("HuggingFaceTB/SmolLM2-135M", read_config(path.parent), None)


def tokenizer_settings(path: Path) -> object:
    config = read_tokenizer_config(path.parent)
    return [token_text(config.get(name)) for name in ("bos_token", "eos_token")], config.get("chat_template")


def from_a_peer(parse: Callable[[Any], object]) -> Callable[[Path], object]:
    return lambda path: parse(parse_json(path.read_bytes(), "the node", ControlError))


def gguf_header() -> bytes:
    """A GGUF file of so small tensors that most of it is header."""
    architecture, model = tiny_model("llama", n_layer=1, n_embd=4, n_head=2, n_query_groups=1, head_size=2,
                                     intermediate_size=4)  # fmt: skip
    with TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        values = hyperparameters(architecture, model.config)
        write_gguf(path, architecture, values, tensors(architecture, model))
        return path.read_bytes()


def nanogpt_checkpoint() -> bytes:
    """What nanoGPT saves, of tensors of no size."""
    buffer = io.BytesIO()
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 11, "bias": True}
    torch.save({"model": {"transformer.wte.weight": torch.ones(1)}, "model_args": arguments}, buffer)
    return buffer.getvalue()


ORIGIN = {"source": "x", "files": {"a": {"n_bytes": 1, "mtime_ns": 2, "digest": "ab"}}}
MANIFEST = {
    "model_digest": DIGEST, "spans": [[0, 1], [1, 3]], "dtype": "float32", "quantization": "none",
    "files": [{"name": chunk_name(node), "n_bytes": 1000, "digest": DIGEST} for node in range(2)], "format_version": 2,
    "source": {"digest": DIGEST, "n_bytes": 2000, "mtime_ns": 0},
}  # fmt: skip
HF_CONFIG = {
    "model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "vocab_size": 49152,
    "num_key_value_heads": 3, "intermediate_size": 1536, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "linear", "factor": 1.0}, "rope_parameters": {"rope_theta": 100000.0},
    "text_config": {"hidden_size": 576}, "quantization_config": None, "torch_dtype": "bfloat16", "eos_token_id": [1, 2],
}  # fmt: skip
TOKENIZER_CONFIG = {
    "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "add_bos_token": True,
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
}  # fmt: skip
GPT2_CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 12, "vocab_size": 11}
GPT2_CONFIG |= {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "n_inner": None}
NETWORK = ROOT / "src" / "settings_distr" / "configuration.json"
READERS = {
    "network": Reader("net.json", NETWORK.read_bytes(), load_network),
    "one node": Reader("net.json", NETWORK.read_bytes(), lambda path: load_node(path, 0)),
    "manifest": Reader(MANIFEST_FILE, as_json(MANIFEST), lambda path: read_manifest(path.parent)),
    "digests": Reader(
        "lit_model.digests.json", as_json({"format_version": 2, "tensors": {"a": f"float32 [1] {DIGEST}"}}),
        lambda path: read_digests(path.with_name("lit_model.pth")),
    ),
    "model configuration": Reader(
        CONFIG_FILE, yaml.safe_dump(BASE).encode(), lambda path: load_config(path.parent), n_ways=200
    ),
    "configuration of the starter": Reader(
        "c", as_json(asdict(Config(**BASE))), from_a_peer(config_from_dict), n_ways=400
    ),
    "source of a model": Reader(ORIGIN_FILE, as_json(ORIGIN), lambda path: compare_origin(path.parent, Origin("x"))),
    "header of a GGUF file": Reader("m.gguf", gguf_header(), lambda path: build_config(open_gguf(path), N_TOKENS)),
    "key of the ring": Reader(
        "key", b"a key with sixteen characters or more", lambda path: key_from_file(path, "key"), n_ways=10
    ),
    "hugging face configuration": Reader("config.json", as_json(HF_CONFIG), hugging_face_config),
    "hugging face configuration of GPT-2": Reader("config.json", as_json(GPT2_CONFIG), hugging_face_config),
    "checkpoint of nanoGPT": Reader(
        "ckpt.pt", nanogpt_checkpoint(), lambda path: _config_of(path, open_weights(path), "toy"), n_ways=400
    ),
    "characters of nanoGPT": Reader(
        "meta.pkl", pickle.dumps({"vocab_size": 3, "stoi": {"a": 0, "\n": 1, "é": 2}, "itos": {0: "a"}}),
        lambda path: _characters(path, 3), n_ways=400,
    ),
    "published byte pairs": Reader(
        "merges.bpe", b"116 104 256\n256 101 257\n32 257 258\n", lambda path: _published_pairs(path, 300), n_ways=200
    ),
    "index of weights": Reader("i.json", as_json({"weight_map": {"a": "1.safetensors", "b": "2.bin"}}), _indexed),
    "safetensors": Reader(
        "m.safetensors", save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}),
        lambda path: [*open_weight_file(path).values()], n_ways=400,
    ),
    "tokenizer configuration": Reader("tokenizer_config.json", as_json(TOKENIZER_CONFIG), tokenizer_settings),
    "chat template": Reader(
        "chat_template.jinja", b"{% for m in messages %}{{ m.content }}{% endfor %}",
        lambda path: load_chat_template(path.parent), n_ways=400,
    ),
    "chat templates": Reader(
        "tokenizer_config.json", as_json(TOKENIZER_CONFIG), lambda path: load_chat_template(path.parent)
    ),
    "generation configuration": Reader(
        "generation_config.json", b'{"eos_token_id": [1, 2],\n "bos_token_id": 1}',
        lambda path: special_ids(path.parent, "eos_token_id"),
    ),
    "prompt style": Reader("prompt_style.yaml", b"class_path: litgpt.prompts.Llama3\n", _saved_class, n_ways=200),
    "prompts": Reader("p.txt", "Eins,\r\nzwei.\n\nDrei, süß.\n".encode(), lambda path: load_prompts(f"FILE:{path}", 3)),
    "token times": Reader("t.csv", b"0,0\n0.125,1\n0.25,2\n", read_token_csv),
    "memory record": Reader("m.csv", b"seconds,rss_bytes\n0,1000\n0.5,2000\n", read_memory_csv),
    "run statistics": Reader("r.csv", f"{RUN_CSV_HEADER}\n1,2,3,4,5\n".encode(), check_run_csv),
    "facts of a handshake": Reader("f", as_json(SPEC.hello), lambda path: _read_facts(memoryview(path.read_bytes()))),
    "session": Reader("s", as_json(SPEC.to_json()), from_a_peer(SessionSpec.from_json)),
    "status": Reader("s", as_json(READY.status.to_json()), from_a_peer(NodeStatus.from_json)),
    "answer to /init": Reader("s", as_json({"ready": READY.status.to_json()}), from_a_peer(init_answer_from_json)),
}  # fmt: skip


def outcome(reader: Reader, path: Path) -> str:
    """The text of the error that a file leads to; empty for a value."""
    try:
        reader.read(path)
    except MdiError as exc:
        return str(exc) or "an error without a text"
    return ""
