"""Where a secondary's weights come from: a file it was given, a model folder, or its chunk cache."""

import logging
from dataclasses import dataclass
from pathlib import Path

from mdi.checkpoint.cache import ChunkCache
from mdi.checkpoint.chunks import chunk_name, chunks_folder
from mdi.checkpoint.weights import MODEL_FILE, Weights, digest_of, file_digest, open_weights, select
from mdi.control.session import FIRST_EPOCH, SessionSpec
from mdi.errors import CheckpointError, StorageError
from mdi.model.architecture import ModelConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightSources:
    """The places to look, in order: `chunk`, `folder`, `cache`."""

    cache: ChunkCache
    chunk: Path | None = None
    folder: Path | None = None

    def find(self, spec: SessionSpec, config: ModelConfig) -> Weights | None:
        """The weights of `spec`, mapped and checked; None where the starter has to send them.

        Raises `CheckpointError` where the file given with --chunk is not the one the starter expects, `StorageError`
        where it cannot be read; but where a ring is formed anew, the layers may be others than the file was given for.
        """
        if self.chunk is not None:
            try:
                return _load_given(self.chunk, spec, config)
            except (CheckpointError, StorageError) as exc:
                if spec.epoch == FIRST_EPOCH:
                    raise
                log.warning("%s; looking elsewhere for layers that another node had", exc)
        if self.folder is not None and (weights := _load_from_folder(self.folder, spec, config)) is not None:
            return weights
        path = self.cache.find(spec.chunk_digest) if spec.chunk_digest else None
        return None if path is None else _load(path, spec, config)


def _load(path: Path, spec: SessionSpec, config: ModelConfig) -> Weights:
    log.info("weights of layers %d to %d from %s", spec.span.start, spec.span.stop - 1, path)
    return select(open_weights(path), config, spec.rank, spec.span)


def _load_given(path: Path, spec: SessionSpec, config: ModelConfig) -> Weights:
    try:
        weights = _load(path, spec, config)
        # a published chunk has other names and rows: its translation counts, not the file
        if spec.chunk_digest not in ("", file_digest(path)) and digest_of(weights) != spec.chunk_digest:
            raise CheckpointError(f"not the chunk {spec.chunk_digest[:12]} that the starter's manifest names")
    except (CheckpointError, StorageError) as exc:
        raise type(exc)(f"--chunk {path}: {exc}") from exc
    return weights


def _load_from_folder(folder: Path, spec: SessionSpec, config: ModelConfig) -> Weights | None:
    chunk = chunks_folder(folder, spec.n_nodes) / chunk_name(spec.rank)
    if chunk.is_file() and spec.chunk_digest in ("", file_digest(chunk)):
        return _load(chunk, spec, config)
    try:
        weights = _load(folder / MODEL_FILE, spec, config)
        if spec.chunk_digest in ("", digest_of(weights)):
            return weights
        problem = f"it is not the starter's chunk {spec.chunk_digest[:12]}"
    except (CheckpointError, StorageError) as exc:
        problem = str(exc)
    log.warning("--ckpt %s is of no use (%s); looking elsewhere", folder, problem)
    return None
