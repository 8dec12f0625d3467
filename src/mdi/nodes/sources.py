"""Where a secondary's weights come from: a file it was given, a model folder, or its chunk cache."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.digests import Check, checked, digest_of_lines, expect_digest, expect_lines, read_digests
from mdi.checkpoint.manifest import chunk_name, chunks_folders, read_manifest
from mdi.checkpoint.tensor_file import Advance, open_weights
from mdi.checkpoint.weights import MODEL_FILE, select, whole_models
from mdi.control.session import FIRST_EPOCH, SessionSpec
from mdi.errors import CheckpointError, StorageError
from mdi.liveness import no_tick
from mdi.model.architecture import ModelConfig
from mdi.model.weights import Weights

log = logging.getLogger(__name__)

_UNUSABLE = (CheckpointError, StorageError)


@dataclass(frozen=True)
class WeightSources:
    """The places to look, in order: `chunk`, `folder`, `cache`."""

    cache: ChunkCache
    chunk: Path | None = None
    folder: Path | None = None

    def load(
        self,
        spec: SessionSpec,
        config: ModelConfig,
        build: Callable[[Weights], None],
        tick: Callable[[], None] = no_tick,
    ) -> bool:
        """Have `build` load the weights of `spec` from the first place that has them undamaged.

        `build` reads them, calls their `verify`, and keeps nothing where that raises. `tick` is called before every
        tensor and for every 8 MB that were read; what it raises ends the loading.

        Returns False where the starter has to send them. Raises `CheckpointError` where the file given with --chunk is
        not the one the starter expects, `StorageError` where it cannot be read; but where a ring is formed anew, the
        layers may be others than the file was given for.
        """
        loading = _Loading(spec, config, build, lambda n_bytes: tick())
        return (
            (self.chunk is not None and _load_given(self.chunk, loading))
            or (self.folder is not None and _load_from_folder(self.folder, loading))
            or (bool(spec.chunk_digest) and _load_cached(self.cache, loading))
        )


@dataclass(frozen=True)
class _Loading:
    """One stage that is to be loaded from one of several files."""

    spec: SessionSpec
    config: ModelConfig
    build: Callable[[Weights], None]
    advance: Advance

    def load(self, path: Path, check: Check | None) -> None:
        span = self.spec.span
        log.info("weights of %s from %s", span, path)
        weights = select(open_weights(path, self.advance), self.config, self.spec.rank, span)
        self.build(checked(weights, check))


def _load_given(path: Path, loading: _Loading) -> bool:
    digest = loading.spec.chunk_digest
    otherwise = f"not the chunk {digest[:12]} that the starter's manifest names, or damaged"
    try:
        # a published chunk has other names and rows: its translation counts, not the file
        loading.load(path, expect_digest(digest, otherwise))
    except _UNUSABLE as exc:
        problem = f"--chunk {path}: {exc}"
        if loading.spec.epoch == FIRST_EPOCH:
            raise type(exc)(problem) from exc
        log.warning("%s; looking elsewhere for layers that another node had", problem)
        return False
    return True


def _load_from_folder(folder: Path, loading: _Loading) -> bool:
    models = whole_models(folder) or [folder / MODEL_FILE]
    for load, place in ((_load_chunk, folder), *((_load_model, model) for model in models)):
        try:
            if load(place, loading):
                return True
        except _UNUSABLE as exc:
            log.warning("--ckpt %s is of no use (%s); looking elsewhere", folder, exc)
    return False


def _load_chunk(folder: Path, loading: _Loading) -> bool:
    """Load the chunk in a model folder; False where there is none, or only such of another split or kind."""
    spec = loading.spec
    chunks = [(path, known) for path, known in _chunks(folder, spec) if spec.chunk_digest in ("", known) or not known]
    if not chunks:
        return False
    path, known = max(chunks, key=lambda chunk: bool(chunk[1]))  # a file without a manifest may be anything
    digest = spec.chunk_digest or known
    loading.load(path, expect_digest(digest, f"{path}: not the chunk {digest[:12]}, or damaged"))
    return True


def _chunks(folder: Path, spec: SessionSpec) -> Iterator[tuple[Path, str]]:
    """The chunk of one node in each set, and its digest; that is empty where no manifest says it."""
    for files in chunks_folders(folder, spec.n_nodes):
        path, manifest = files / chunk_name(spec.rank), read_manifest(files)
        if path.is_file():
            named = manifest.files if manifest is not None else ()
            yield path, named[spec.rank].digest if spec.rank < len(named) else ""


def _load_model(path: Path, loading: _Loading) -> bool:
    """Load a part of a whole model. Raises `CheckpointError` where that is not the starter's chunk."""
    spec, known = loading.spec, read_digests(path)
    otherwise = f"{path}: it is not the starter's chunk {spec.chunk_digest[:12]}"
    if known is not None and spec.chunk_digest:
        names = select(open_weights(path), loading.config, spec.rank, spec.span)
        if digest_of_lines({name: known.get(name, "") for name in names}) != spec.chunk_digest:
            raise CheckpointError(otherwise)
    loading.load(path, expect_digest(spec.chunk_digest, otherwise) or expect_lines(path, known))
    return True


def _load_cached(cache: ChunkCache, loading: _Loading) -> bool:
    digest = loading.spec.chunk_digest
    was_there = cache.holds(digest)
    if (path := cache.find(digest, loading.advance)) is None:
        return False
    try:
        loading.load(path, expect_digest(digest, f"{path}: damaged: its tensors are not those of its name"))
    except _UNUSABLE as exc:
        cache.discard(digest)
        if not was_there:  # it arrived whole, a moment ago: to ask for it again would not end
            raise
        log.warning("%s; it was removed, and the starter sends it again", exc)
        return False
    return True
