"""A prepared model's folder: its configuration, the whole model's file where it is there, and its chunks."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mdi.checkpoint.adapters import refuse_adapters
from mdi.checkpoint.chunks import (
    UNKNOWN_FORM,
    StoredForm,
    cast_of,
    is_fresh,
    remake_chunk,
    stored_as,
    write_chunks,
)
from mdi.checkpoint.config import CONFIG_FILE, find_models, load_config
from mdi.checkpoint.digests import Check, content_digest, expect_digest, expect_lines, read_digests
from mdi.checkpoint.manifest import (
    MANIFEST_FILE,
    Manifest,
    chunk_name,
    chunks_folder,
    chunks_folders,
    kind_of,
    read_manifest,
)
from mdi.checkpoint.tensor_file import Advance, no_progress
from mdi.checkpoint.weights import MODEL_FILE, mode_of_file, source_of, whole_model, whole_models
from mdi.config.paths import CHECKPOINTS_DIR
from mdi.errors import CheckpointError, ConfigError, StorageError
from mdi.formats import Mode
from mdi.installation import program_name
from mdi.liveness import no_tick
from mdi.model.architecture import ModelConfig
from mdi.model.quant import resolve
from mdi.model.span import Span
from mdi.strings import count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """What lies in the folder of one model, as it was when it was read."""

    path: Path
    config: ModelConfig
    has_weights: bool  # the whole model is there, so its layers can be split anew
    manifests: Mapping[int, Manifest] = field(default_factory=dict)  # by number of nodes
    own_form: StoredForm = UNKNOWN_FORM  # of the whole model, or of a starter's chunk

    @property
    def name(self) -> str:
        """The model's name, `org/name` where it lies two folders deep."""
        return "/".join(self.path.resolve().parts[-2:])

    def ring_manifest(self, n_nodes: int) -> Manifest | None:
        """The manifest of the chunks that a ring of so many nodes loads; None where it is unknown.

        A node on its own loads the whole model, unless a quantized chunk of it was asked for: see `starter_weights`.
        """
        return self.manifests.get(n_nodes) if n_nodes > 1 else None

    def stored_mode(self, n_nodes: int, quantize: Mode | None) -> Mode:
        """How the weights are stored that a ring of so many nodes loads: in its chunks, or what these are made from."""
        if (manifest := self.ring_manifest(n_nodes)) is not None:
            return manifest.quantization
        return mode_of_file(whole_model(self.path, quantize))

    def stored(self, n_nodes: int) -> StoredForm:
        """How weights lie in what a ring of so many nodes loads."""
        manifest = self.ring_manifest(n_nodes)
        return self.own_form if manifest is None else self.own_form._replace(dtype=manifest.dtype)

    def chunk(self, n_nodes: int, rank: int) -> Path:
        """The chunk file of one node, where this machine has it."""
        manifest = self.manifests.get(n_nodes)
        return (manifest.folder if manifest else chunks_folder(self.path, n_nodes)) / chunk_name(rank)

    def with_chunks(
        self, spans: list[Span], quantize: Mode | None, tick: Callable[[], None] = no_tick
    ) -> "ModelFolder":
        """The same folder with chunks for a split: written where they are missing, stale or of another kind.

        Without the whole model nothing can be written, and the manifest may be missing still. While chunks are
        written, `tick` is called again and again; what it raises ends the work.
        """
        n_nodes = len(spans)
        manifest = self.manifests.get(n_nodes)
        if n_nodes == 1 or not self.has_weights:
            return self
        if (
            manifest is not None
            and serves(manifest, spans, quantize)
            and not self._has_better(manifest, quantize)
            and is_fresh(self.path, manifest, tick)
        ):
            return self
        cast, mode = self._kind_of_new_chunks(n_nodes, quantize)
        is_expected = manifest is None or list(manifest.spans) != spans  # another split was asked for
        level = logging.INFO if is_expected else logging.WARNING
        kind = kind_of(cast or "stored", mode)
        log.log(level, "%s: %s; splitting it anew, as %s", self.path, _reason(manifest, spans, mode), kind)
        return replace(self, manifests={**self.manifests, n_nodes: write_chunks(self.path, spans, cast, mode, tick)})

    def _kind_of_new_chunks(self, n_nodes: int, quantize: Mode | None) -> tuple[str | None, Mode]:
        """Dtype and quantization of chunks to be written: those of the chunks they replace, as far as these serve.

        The chunks of a ring that has lost nodes replace those of the larger ring. Others are as the whole model is.
        Raises `ConfigError` where that is quantized, and otherwise than was asked for.
        """
        smallest = min((n for n in self.manifests if n >= n_nodes), default=None)
        replaced = None if smallest is None else self.manifests[smallest]
        if replaced is None or not _may_be(replaced.quantization, quantize) or self._has_better(replaced, quantize):
            stored = mode_of_file(model := whole_model(self.path, quantize))
            return None, "none" if stored == "none" else resolve(stored, quantize, str(model))
        return cast_of(self.path, replaced), replaced.quantization

    def starter_weights(self, spans: Sequence[Span], quantize: Mode | None) -> Path:
        """The file with the starter's tensors: its chunk, unless that is of another split, or else the whole model.

        Raises `CheckpointError` where there is neither.
        """
        n_nodes = len(spans)
        chunk, model = self.chunk(n_nodes, 0), whole_model(self.path, quantize)
        manifest = self.manifests.get(n_nodes)
        is_chunk_of_split = manifest is None or serves(manifest, list(spans), quantize)
        prefers_chunk = is_chunk_of_split if n_nodes > 1 else self._is_quantized(quantize)
        for path in (chunk, model) if prefers_chunk else (model, chunk):
            if path.is_file():
                return path
        raise CheckpointError(
            f"{self.path}: neither {MODEL_FILE} nor chunks for {count(n_nodes, 'node')}; run"
            f" {program_name('prepare_model')} first"
        )

    def check(self, path: Path, n_nodes: int) -> Check | None:
        """What is known of the weights in a file that `starter_weights` chose. Raises as `read_digests`."""
        if path.parent == self.path:  # a whole model
            return expect_lines(path, read_digests(path))
        manifest = self.manifests.get(n_nodes)
        otherwise = f"{path}: damaged: its tensors are not those of its manifest"
        return expect_digest(manifest.files[0].digest if manifest else "", otherwise)

    def undamaged_chunk(self, n_nodes: int, rank: int, advance: Advance = no_progress) -> Path:
        """The chunk file of one node, for sending: read whole, and written anew where it is damaged.

        `advance` is called with the bytes that were read. Raises `CheckpointError` where it can be neither.
        """
        path, manifest = self.chunk(n_nodes, rank), self.manifests[n_nodes]
        try:
            if content_digest(path, advance) != manifest.files[rank].digest:
                raise CheckpointError(f"{path}: damaged: its tensors are not those of its manifest")
        except CheckpointError as problem:
            self.remake(path, n_nodes, rank, problem)
        return path

    def remake(
        self, path: Path, n_nodes: int, rank: int, problem: CheckpointError, tick: Callable[[], None] = no_tick
    ) -> None:
        """Write the damaged chunk `path` anew, as its manifest says. `tick` may end that by raising.

        Raises `problem` where it cannot be written anew, or else as `mdi.checkpoint.chunks.remake_chunk`.
        """
        manifest = self.manifests.get(n_nodes)
        if manifest is None or not path.is_relative_to(self.path / "chunks"):
            raise problem
        if not (model := source_of(self.path, manifest.quantization)).is_file():
            raise problem
        log.warning("%s; making it anew from %s", problem, model.name)
        remake_chunk(self.path, manifest, rank, tick)

    def _has_better(self, manifest: Manifest, quantize: Mode | None) -> bool:
        """Whether the chunks would have to be quantized, and the whole model is there in that mode: perhaps a file's
        own blocks, which rounding would not give back.
        """
        return manifest.quantization == "none" != quantize == mode_of_file(whole_model(self.path, quantize))

    def _is_quantized(self, mode: Mode | None) -> bool:
        """Whether a chunk of the whole model has the quantization that was asked for."""
        manifest = self.manifests.get(1) if mode not in (None, "none") else None
        return manifest is not None and manifest.is_readable and manifest.quantization == mode


def serves(manifest: Manifest, spans: list[Span], mode: Mode | None) -> bool:
    """Whether the chunks have the split, and weights that are or can be made what was asked for."""
    return manifest.is_readable and list(manifest.spans) == spans and _may_be(manifest.quantization, mode)


def _may_be(stored: Mode, asked: Mode | None) -> bool:
    return stored == "none" or asked in (None, stored)


def _reason(manifest: Manifest | None, spans: list[Span], mode: Mode) -> str:
    """Why chunks are written."""
    if manifest is None:
        return f"no chunks for {count(len(spans), 'node')}"
    if list(manifest.spans) != spans:
        return f"{manifest.folder.name} has another split"
    if manifest.quantization != mode:
        stored = manifest.quantization if manifest.quantization != "none" else manifest.dtype
        return f"{manifest.folder.name} holds {stored} weights"
    if not manifest.is_readable:
        return f"{manifest.folder.name} was quantized by an earlier version, in another format"
    return f"{manifest.folder.name} lacks a file, or was made from other weights"


def open_folder(path: Path, n_nodes: int, quantize: Mode | None = None, dtype: str | None = None) -> ModelFolder:
    """Read a model folder for a network of `n_nodes`. Raises `CheckpointError` where something in it is damaged.

    Of several sets of chunks for as many nodes it takes the one that fits `quantize` and `dtype`, as asked for by the
    user, or else the plain one.
    """
    config = load_config(path)
    manifests = {}
    for n in range(1, n_nodes + 1):
        # chunks for fewer nodes are of interest only after a loss, and can be written anew then
        with contextlib.suppress(*() if n == n_nodes else (CheckpointError,)):
            if sets := _read_manifests(path, n, config.n_layer):
                manifests[n] = min(sets, key=lambda manifest: _mismatch(manifest, quantize, dtype))
                _check_readable(path, manifests[n])
                if len(sets) > 1 and n == n_nodes > 1:
                    others = ", ".join(manifest.folder.name for manifest in sets if manifest != manifests[n])
                    log.warning("%s: using the chunks in %s, not those in %s", path, manifests[n].folder.name, others)
    own_form = _own_form(path, config, manifests.get(n_nodes))
    return ModelFolder(path, config, bool(whole_models(path)), manifests, own_form)


def _own_form(path: Path, config: ModelConfig, manifest: Manifest | None) -> StoredForm:
    """How the whole model lies there, or else the starter's chunk. What cannot be read is told when it is loaded."""
    files = whole_models(path) if manifest is None else [*whole_models(path), manifest.folder / chunk_name(0)]
    try:
        return stored_as(files[0], config) if files else UNKNOWN_FORM
    except (CheckpointError, StorageError):
        return UNKNOWN_FORM


def _read_manifests(path: Path, n_nodes: int, n_layer: int) -> list[Manifest]:
    """What is known of each set of chunks for a number of nodes, the plain one first."""
    manifests = [manifest for files in chunks_folders(path, n_nodes) if (manifest := read_manifest(files)) is not None]
    for manifest in manifests:
        if (len(manifest.spans), manifest.spans[-1].stop) != (n_nodes, n_layer):
            file = manifest.folder / MANIFEST_FILE
            raise CheckpointError(f"{file}: damaged: its spans are not {n_layer} layers on {n_nodes} nodes")
    return manifests


def _check_readable(path: Path, manifest: Manifest) -> None:
    """Raise `CheckpointError` for chunks in a format of an earlier version, unless they can be made anew."""
    if not manifest.is_readable and not whole_models(path):
        raise CheckpointError(
            f"{manifest.folder}: these {manifest.quantization} weights are in a format of an earlier version, which"
            f" this one does not read: prepare the model again with {program_name('prepare_model')}"
            f" --quantize {manifest.quantization}"
        )


def _mismatch(manifest: Manifest, quantize: Mode | None, dtype: str | None) -> tuple[bool, ...]:
    """How far chunks are from what was asked for; the smallest fits best."""
    mode = manifest.quantization
    is_other = mode != (quantize or "none")
    return not _may_be(mode, quantize), is_other, dtype not in (None, manifest.dtype), not manifest.is_readable


def find_folder(ckpt: Path | None, chunk: Path | None = None) -> Path:
    """The model folder: `ckpt`, or the one that `chunk` lies in, or the only one that is prepared.

    `ckpt` is a folder, or the name of one below the checkpoints. Raises `ConfigError` listing what there is.
    """
    if ckpt is None and chunk is not None and len(chunk.resolve().parents) > 3:
        ckpt = chunk.resolve().parents[2]  # <folder>/chunks/<N>nodes/<chunk>
    if ckpt is not None and (ckpt / CONFIG_FILE).is_file():
        return ckpt
    if ckpt is not None and (CHECKPOINTS_DIR / ckpt / CONFIG_FILE).is_file():
        return CHECKPOINTS_DIR / ckpt
    if ckpt is not None:
        refuse_adapters(ckpt)
    root = ckpt if ckpt is not None and ckpt.is_dir() else CHECKPOINTS_DIR
    models = find_models(root)
    if len(models) == 1 and ckpt is None and chunk is None:
        log.info("using %s, the only model in %s", models[0], root)
        return models[0]
    if models:
        advice = f"choose one of these with --ckpt: {', '.join(map(str, models))}"
    else:
        advice = f"prepare one with {program_name('prepare_model')} first"
    raise ConfigError(f"{'no model given' if ckpt is None else f'{ckpt}: no prepared model there'}; {advice}")
