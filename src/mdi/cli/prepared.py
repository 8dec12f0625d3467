"""What is prepared already, and whether it is still what it was then: all of it is read to find out."""

import logging
from pathlib import Path

from mdi.checkpoint.chunks import dtype_of, is_fresh
from mdi.checkpoint.config import CONFIG_FILE, load_config
from mdi.checkpoint.digests import digests_file, lines_of, read_digests
from mdi.checkpoint.folder import ModelFolder
from mdi.checkpoint.manifest import Manifest, chunks_folders, kind_of, read_manifest
from mdi.checkpoint.tensor_file import open_weights
from mdi.checkpoint.weights import mode_of_file, model_file, whole_model, whole_models
from mdi.cli.origin import Match, Origin, compare_origin, name_of_origin
from mdi.cluster.costs import load_of
from mdi.cluster.partition import split
from mdi.config.network import load_network
from mdi.config.prepare_options import PrepareOptions
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.model.span import Span
from mdi.progress import progress_bar
from mdi.strings import one_line
from mdi.text.check import check_text
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)


def asked_spans(folder: Path, options: PrepareOptions) -> list[Span] | None:
    """The split that was asked for, if any."""
    shares = _shares(options)
    if shares is None:
        return None
    return split(options.split, load_of(load_config(folder), _asked_mode(folder, options), shares))


def existing_chunks(folder: Path, spans: list[Span], options: PrepareOptions) -> Manifest | None:
    """The chunks of that split and kind, if they are there and were made from the model that is there.

    Where neither `--split` nor unequal nodes ask for a split, any that is there will do: a starter uses it too.
    """
    for files in chunks_folders(folder, len(spans)):
        try:
            manifest = read_manifest(files)
        except CheckpointError as exc:
            log.warning("%s", exc)
            continue
        if manifest is not None and _is_asked_for(manifest, spans, options) and is_fresh(folder, manifest):
            return manifest
    return None


def _is_asked_for(manifest: Manifest, spans: list[Span], options: PrepareOptions) -> bool:
    mode = _asked_mode(manifest.folder.parents[1], options)
    same_format = options.dtype in (None, manifest.dtype) and mode == manifest.quantization
    takes_any_split = options.split == "auto" and len(set(_shares(options) or ())) == 1
    return manifest.is_readable and (takes_any_split or list(manifest.spans) == spans) and same_format


def _asked_mode(folder: Path, options: PrepareOptions) -> Mode:
    """What the chunks of a model will be: as the model is, unless that was asked for."""
    return mode_of_file(whole_model(folder)) if options.quantize == "none" else options.quantize


def _shares(options: PrepareOptions) -> list[float] | None:
    if options.nodes_config is not None:
        return load_network(options.nodes_config).shares
    return None if options.n_nodes is None else [1.0] * options.n_nodes


def is_ready(target: Path, origin: Origin, options: PrepareOptions, mode: Mode = "none") -> bool:
    """Whether `target` holds what `origin` gives in a mode, undamaged.

    Raises `ConfigError` where it holds another model.
    """
    model = target / model_file(mode)
    if not (target / CONFIG_FILE).is_file() or not _has_weights(model, options):
        return False
    match, known = compare_origin(target, origin)
    if match is Match.OTHER:
        advice = "remove it, or choose another --ckpt-folder"
        raise ConfigError(f"{target} was made from {one_line(known)}, not from {origin.name}: {advice}")
    if match is Match.CHANGED:
        log.warning("%s has changed since %s was made from it: making that anew", known, target)
        return False
    return not model.is_file() or _has_dtype(model, options.dtype)


def _has_weights(model: Path, options: PrepareOptions) -> bool:
    """Whether the whole model is there, or no form of it but undamaged chunks are, and they are enough."""
    target = model.parent
    if whole_models(target):
        return model.is_file()
    try:
        spans = asked_spans(target, options)
        manifest = None if spans is None else existing_chunks(target, spans, options)
        if manifest is not None:
            check_chunks(target, manifest)
    except CheckpointError as exc:
        log.warning("%s; making it anew", exc)
        return False
    return manifest is not None


def _has_dtype(model: Path, dtype: str | None) -> bool:
    """Whether the whole model is undamaged, in a dtype, or in any if that is None."""
    target = model.parent
    try:
        stored = dtype_of(model)
        if dtype not in (None, stored):
            log.warning("%s is in %s: making it anew in %s", target, stored, dtype)
            return False
        _check_model(model)
    except CheckpointError as exc:
        log.warning("%s; making it anew", exc)
        return False
    log.warning("%s is prepared already, in %s", target, kind_of(stored, mode_of_file(model)))
    return True


def check_given(folder: Path, options: PrepareOptions) -> None:
    """Raise `CheckpointError` where the prepared model in a folder that the user named is damaged."""
    try:
        if (model := whole_model(folder, options.quantize)).is_file():
            _check_model(model)
        elif (spans := asked_spans(folder, options)) and (manifest := existing_chunks(folder, spans, options)):
            check_chunks(folder, manifest)
    except CheckpointError as exc:
        known = name_of_origin(folder)
        advice = f"; it was made from {known}: prepare that" if known else ""
        raise CheckpointError(f"{exc}{advice}") from exc


# ---- damage


def check_text_files(folder: Path) -> None:
    """Raise `CheckpointError` for a vocabulary that cannot be used."""
    with TextWorker() as worker:
        check_text(folder, worker)


def _check_model(model: Path) -> None:
    """Raise `CheckpointError` where configuration, vocabulary or the weights in the file `model` are damaged.

    Raises `ConfigError` for weights that somebody put there since: they are not ours to replace.
    """
    folder, digests = model.parent, digests_file(model)
    load_config(folder)
    check_text_files(folder)
    if (known := read_digests(model)) is None:
        return  # another program made it
    with progress_bar(model.stat().st_size, f"checking {folder.name}", "B") as advance:
        lines = lines_of(open_weights(model, advance))
    if damaged := [name for name, line in known.items() if lines.get(name) != line]:
        if model.stat().st_mtime_ns > digests.stat().st_mtime_ns:
            raise ConfigError(
                f"{model} was written after it was prepared, and is not what {digests.name} says: if you replaced it,"
                f" remove {digests.name}, otherwise {model.name}, and prepare the model again"
            )
        raise CheckpointError(f"{model}: damaged: {damaged[0]} is not what {digests.name} says")


def check_chunks(folder: Path, manifest: Manifest) -> None:
    """Write damaged chunks anew from the whole model. Raises `CheckpointError` where that is not there."""
    n_nodes = len(manifest.spans)
    model = ModelFolder(folder, load_config(folder), bool(whole_models(folder)), {n_nodes: manifest})
    with progress_bar(sum(file.n_bytes for file in manifest.files), "checking the chunks", "B") as advance:
        for rank in range(n_nodes):
            model.undamaged_chunk(n_nodes, rank, advance)
