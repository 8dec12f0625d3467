"""Files: the configuration of the network, a manifest, GGUF models and chunks."""

import contextlib
import io
import json
import pickletools
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config

from fuzz.mutations import change_archive, change_bytes, change_json, edge, put, splice
from fuzz.target import Target
from mdi.checkpoint.digests import digest_of
from mdi.checkpoint.manifest import chunk_name, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import select, whole_models
from mdi.config.network import load_network, load_node
from mdi.convert.gguf import file as gguf_file
from mdi.convert.gguf.convert import import_gguf
from mdi.errors import CheckpointError, ConfigError, StorageError
from mdi.formats import MODES
from mdi.model.quant import dequantize, is_quantized_name, load_weight, mode_of, quantize
from mdi.model.span import Span
from support.gguf_files import TOKENS, byte_level_tokenizer, hyperparameters, tensors, tiny_model, write_gguf
from support.models import BASE

SETTINGS = Path(__file__).resolve().parents[2] / "src" / "settings_distr"


class NetworkTarget(Target):
    """`load_network` and `load_node`, with the file on disk."""

    name = "network"
    share = 0.5

    def seeds(self) -> list[bytes]:
        files = [path.read_bytes() for path in sorted(SETTINGS.glob("*.json"))]
        network = json.loads((SETTINGS / "configuration.json").read_text())
        keyed = network | {"key": "sixteen characters or more"}
        secured = network | {"key_file": "key.txt", "tls": {"certificate": "c", "private_key": "p", "ca": "a"}}
        return [*files, *(json.dumps(value).encode() for value in (keyed, secured))]

    def check(self, data: bytes) -> int:
        path = self.scratch / "network.json"
        path.write_bytes(data)
        for load in (load_network, lambda path: load_node(path, None), lambda path: load_node(path, 0)):
            try:
                load(path)
                self.accepted += 1
            except ConfigError:
                pass
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        return change_json(data, rng)


class ManifestTarget(Target):
    """`read_manifest`."""

    name = "manifest"
    share = 0.5

    def seeds(self) -> list[bytes]:
        digest = "ab" * 32
        files = [{"name": chunk_name(node), "n_bytes": 1000, "digest": digest} for node in range(3)]
        source = {"digest": digest, "n_bytes": 3000, "mtime_ns": 0}
        manifest = {"model_digest": digest, "spans": [[0, 1], [1, 3], [3, 6]], "dtype": "float32",
                    "quantization": "none", "files": files, "source": source, "format_version": 2}  # fmt: skip
        return [json.dumps(manifest).encode(), json.dumps(manifest | {"quantization": "int4"}).encode()]

    def check(self, data: bytes) -> int:
        (self.scratch / "manifest.json").write_bytes(data)
        try:
            manifest = read_manifest(self.scratch)
        except CheckpointError:
            return 1
        if manifest is None:  # of an earlier format
            return 1
        assert manifest.spans[0].start == 0 and manifest.quantization in MODES
        for file in manifest.files:
            assert isinstance(file.name, str) and isinstance(file.n_bytes, int)
        self.accepted += 1
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        return change_json(data, rng)


_SMALL_GGUF = {"n_embd": 32, "n_head": 2, "n_query_groups": 1, "intermediate_size": 32, "block_size": 16}


class _Recorder(gguf_file._Cursor):
    """Knows where in the file each length, count, code and text stands."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        file.seek(8)
        super().__init__(file, 8, len(data))
        self.places: list[tuple[int, int]] = []

    def _take(self, n: int) -> bytes:
        self.places.append((self.position, n))
        return super()._take(n)


class GgufTarget(Target):
    """`import_gguf`: header, metadata, tokenizer, configuration, tensors, and the folder it writes."""

    name = "gguf"
    share = 1.5
    max_bytes = 65536
    growth_limit_bytes = 96 << 20
    CASES = ("llama", "llama3", "qwen3moe", "gemma3", "qwen2", "mixtral")

    def seeds(self) -> list[bytes]:
        folder = self.scratch / "seeds"
        folder.mkdir(exist_ok=True)
        return [self._sample(folder / f"{case}.gguf", case) for case in self.CASES]

    def _sample(self, path: Path, case: str) -> bytes:
        import gguf

        layers = {} if case.startswith("gemma") else {"n_layer": 1}
        architecture, model = tiny_model(case, **_SMALL_GGUF, **layers)
        values = hyperparameters(architecture, model.config) | byte_level_tokenizer()
        kind = gguf.GGMLQuantizationType.Q4_0
        write_gguf(path, architecture, values, tensors(architecture, model, tied=True), lambda name: kind)
        assert len(TOKENS) == model.config.vocab_size
        return path.read_bytes()

    def check(self, data: bytes) -> int:
        source, folder = self.scratch / "model.gguf", self.scratch / "imported"
        source.write_bytes(data)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            import_gguf(source, folder, quantization=MODES[len(data) % len(MODES)])
        except (CheckpointError, StorageError):  # the latter where memory does not suffice
            return 1
        [model] = whole_models(folder)
        assert all(torch.isfinite(tensor).all() for tensor in open_weights(model).values())
        self.accepted += 1
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        places = _places(data)
        if not places:
            return change_bytes(data, rng)
        for _ in range(rng.randint(1, 2)):
            at, n = places[rng.randrange(len(places))] if rng.random() < 0.6 else rng.choice(places[-200:])
            if n in (1, 2, 4, 8):
                data = put(data, at, edge(rng, n))
            elif rng.random() < 0.5:
                data = put(data, at, change_bytes(data[at : at + n], rng).ljust(n, b"x")[:n])
            else:
                data = change_bytes(data, rng, at, at + max(n, 1))
        return data


def _places(data: bytes) -> list[tuple[int, int]]:
    """Where the numbers and texts of the header are, as far as it can be read."""
    recorder = _Recorder(data)
    with contextlib.suppress(gguf_file.Damaged, OverflowError):
        gguf_file._read_header(recorder, Path("x.gguf"), len(data))
    return recorder.places


class ChunkTarget(Target):
    """`open_weights`, `select` and what a node computes of a chunk next, in every format; nothing in it is executed."""

    name = "chunk"
    share = 1.5
    max_bytes = 65536
    growth_limit_bytes = 96 << 20
    SPAN = Span(1, 2)
    SMALL = BASE | {"vocab_size": 32, "padded_vocab_size": 32, "n_layer": 2, "intermediate_size": 32}

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._config = Config(**self.SMALL)

    def seeds(self) -> list[bytes]:
        from litgpt.model import GPT

        torch.manual_seed(0)
        layer = {name: tensor for name, tensor in GPT(self._config).state_dict().items() if ".h.1." in name}
        published = {name.replace(".h.1.", ".h.0.").replace("attn.qkv", "attn.attn"): t for name, t in layer.items()}
        quantized = [
            {name: part for whole, tensor in layer.items() for name, part in _parts(whole, tensor, mode)}
            for mode in MODES[1:]
        ]
        files = [layer, published, *quantized]
        return [_saved(weights) for weights in files] + [_saved(layer, _use_new_zipfile_serialization=False)]

    def check(self, data: bytes) -> int:
        path = self.scratch / "chunk.pth"
        path.write_bytes(data)
        try:
            weights = open_weights(path)
            digest_of(weights)
            chosen = select(weights, self._config, 1, self.SPAN)
        except CheckpointError:
            return 1
        mode_of(chosen.meta)
        for name in chosen:
            if is_quantized_name(name):
                dequantize(load_weight(chosen, name))
        self.accepted += 1
        return 1

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        return change_archive(data, rng, "data.pkl", lambda pickled: _change_pickle(pickled, rng))

    def repair(self, data: bytes, rng: random.Random) -> bytes:
        return data


def _parts(name: str, tensor: torch.Tensor, mode: Any) -> list[tuple[str, torch.Tensor]]:
    if not is_quantized_name(name):
        return [(name, tensor)]
    return [(name + suffix, part) for suffix, part in quantize(tensor, mode).parts.items()]


def _saved(weights: dict[str, torch.Tensor], **options: Any) -> bytes:
    target = io.BytesIO()
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, target, **options)
    return target.getvalue()


_GLOBALS = (b"torch\nFloatStorage\n", b"torch\nHalfStorage\n", b"torch\nQInt8Storage\n", b"torch\nLongStorage\n",
            b"torch\nBoolStorage\n", b"torch\nUntypedStorage\n", b"torch._utils\n_rebuild_tensor_v2\n",
            b"torch._utils\n_rebuild_parameter\n", b"torch._utils\n_rebuild_sparse_tensor\n", b"torch\nSize\n",
            b"torch._utils\n_rebuild_meta_tensor_no_storage\n", b"torch._utils\n_rebuild_qtensor\n",
            b"torch._utils\n_rebuild_wrapper_subclass\n", b"torch._utils\n_rebuild_nested_tensor\n",
            b"torch._tensor\n_rebuild_from_type_v2\n", b"torch\nTensor\n", b"torch.nn.parameter\nParameter\n",
            b"collections\nOrderedDict\n", b"collections\nCounter\n", b"builtins\nbytearray\n", b"os\nsystem\n",
            b"builtins\neval\n", b"torch\ndevice\n", b"torch.serialization\n_get_layout\n", b"numpy\ndtype\n",
            b"builtins\nset\n", b"torch\nbfloat16\n", b"_codecs\nencode\n", b"posix\nsystem\n")  # fmt: skip


def _change_pickle(pickled: bytes, rng: random.Random) -> bytes:
    """Other numbers, texts and names in a pickle that stays one, or any other bytes."""
    found = _opcodes(pickled)
    if not found or rng.random() < 0.2:
        return change_bytes(pickled, rng)
    for _ in range(rng.randint(1, 3)):
        name, at, stop = rng.choice(found)
        match name:
            case "BININT1" | "BININT2" | "BININT":
                size = {"BININT1": 1, "BININT2": 2, "BININT": 4}[name]
                pickled = put(pickled, at + 1, edge(rng, size))
            case "GLOBAL":
                return pickled[: at + 1] + rng.choice(_GLOBALS) + pickled[stop:]
            case "BINUNICODE":
                return pickled[: at + 1] + _text(change_bytes(pickled[at + 5 : stop], rng)) + pickled[stop:]
            case _ if rng.random() < 0.3:
                return (
                    splice(pickled[:stop], pickled[at:], rng) if rng.random() < 0.2 else pickled[:at] + pickled[stop:]
                )
    return pickled


def _text(text: bytes) -> bytes:
    return len(text).to_bytes(4, "little") + text


def _opcodes(pickled: bytes) -> list[tuple[str, int, int]]:
    """(name, first byte, byte behind) of each operation, as far as the pickle can be read."""
    found: list[tuple[str, int]] = []
    try:
        for opcode, _, at in pickletools.genops(pickled):
            found.append((opcode.name, at or 0))
    except (ValueError, UnicodeDecodeError, OverflowError, IndexError, KeyError, MemoryError):
        pass
    stops = [at for _, at in found[1:]]
    return [(name, at, stop) for (name, at), stop in zip(found, stops, strict=False)]
