"""Any form of a model -> a litGPT folder, and its chunks."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mdi.checkpoint.chunks import chunks_bytes, dtype_of, is_fresh, write_chunks
from mdi.checkpoint.config import CONFIG_FILE, load_config
from mdi.checkpoint.digests import record_digests
from mdi.checkpoint.manifest import Manifest, chunks_folders, read_manifest
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cli.origin import ORIGIN_FILE, Match, Origin, compare_origin, record_origin
from mdi.cluster.partition import Load, split
from mdi.config.network import load_network
from mdi.config.options import PrepareOptions
from mdi.convert.gguf.convert import import_gguf, suggested_name
from mdi.convert.gguf.parts import parts_of
from mdi.convert.hf_configs import resolve_config_name
from mdi.convert.hub import (
    download,
    download_chosen,
    download_config,
    download_small_files,
    read_config,
    wanted_files,
)
from mdi.convert.huggingface import (
    announce_size,
    check_small_files,
    convert_folder,
    link_or_copy,
    remove_download_records,
)
from mdi.convert.known_models import HubName, choose_gguf, parse_hub_name
from mdi.convert.random import make_random
from mdi.convert.sources import LocalSource, check_present, check_source, find_cached, local_source
from mdi.errors import CheckpointError, ConfigError
from mdi.files import partial_folder, storage_error
from mdi.model.shapes import head_weight, layer_weights
from mdi.model.span import Span
from mdi.progress import progress_bar
from mdi.strings import count, format_bytes, one_line
from mdi.text.check import check_text
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)

_KEPT = ("chunks", "prompt_style.yaml")  # of a model that is made anew: digests tell whether chunks still belong to it


def prepare(options: PrepareOptions) -> tuple[Path, Manifest | None]:
    """Prepare the model; return its folder, and the manifest of its chunks if a split was asked for.

    What exists already is not made again. An interrupted run leaves nothing that looks finished.
    """
    folder = _prepare_folder(options)
    spans = _spans(folder, options)
    if spans is None:
        return folder, None
    if options.chunks_only and not (folder / ORIGIN_FILE).is_file():
        raise ConfigError(f"--chunks-only: {folder / MODEL_FILE} was not made by this program: remove it yourself")
    manifest = _existing_chunks(folder, spans, options)
    if manifest is not None:
        log.warning("chunks for %s are there already, in %s", count(len(spans), "node"), manifest.folder)
    else:
        manifest = _write_chunks(folder, spans, options)
    if options.chunks_only:
        _remove_whole_model(folder)
    return folder, manifest


def _spans(folder: Path, options: PrepareOptions) -> list[Span] | None:
    """The split that was asked for, if any."""
    shares = _shares(options)
    if shares is None:
        return None
    config = load_config(folder)
    return split(options.split, Load(layer_weights(config), head_weight(config), shares))


def _existing_chunks(folder: Path, spans: list[Span], options: PrepareOptions) -> Manifest | None:
    for files in chunks_folders(folder, len(spans)):
        manifest = read_manifest(files)
        if manifest is not None and _is_asked_for(manifest, spans, options) and is_fresh(folder, manifest):
            return manifest
    return None


def _write_chunks(folder: Path, spans: list[Span], options: PrepareOptions) -> Manifest:
    if (folder / MODEL_FILE).is_file():
        n_bytes = chunks_bytes(folder, spans, options.dtype, options.quantize)
        log.warning("the chunks for %s take %s", count(len(spans), "node"), format_bytes(n_bytes))
    manifest = write_chunks(folder, spans, options.dtype, options.quantize)
    log.warning("chunks for %s are in %s", count(len(spans), "node"), manifest.folder)
    return manifest


def _remove_whole_model(folder: Path) -> None:
    """Leave the chunks alone."""
    try:
        (folder / MODEL_FILE).unlink(missing_ok=True)
    except OSError as exc:
        raise storage_error(folder / MODEL_FILE, exc) from exc


def _is_asked_for(manifest: Manifest, spans: list[Span], options: PrepareOptions) -> bool:
    same_format = options.dtype in (None, manifest.dtype) and options.quantize == manifest.quantization
    return list(manifest.spans) == spans and same_format


def _shares(options: PrepareOptions) -> list[float] | None:
    if options.nodes_config is not None:
        return load_network(options.nodes_config).shares
    return None if options.n_nodes is None else [1.0] * options.n_nodes


def _prepare_folder(options: PrepareOptions) -> Path:
    if options.random is not None:
        return _make_random(options, options.random)
    assert options.model is not None  # `PrepareOptions` has checked that one of the two is given
    path = Path(options.model).expanduser()
    if path.is_file():
        return _import_gguf(options, path)
    if (path / CONFIG_FILE).is_file():
        return path
    if path.is_dir():
        return _convert_local(options, local_source(path))
    if path.is_symlink():
        check_present(path)
    if (hub_name := parse_hub_name(options.model)) is None:
        raise ConfigError(
            f"{options.model}: no such file or folder, nor a name on the hub, such as org/name, org/name:Q4_K_M, or one"
            " of the short names that --list shows"
        )
    return _fetch(options, hub_name.repo_id) if hub_name.gguf is None else _fetch_gguf(options, hub_name)


def _fetch(options: PrepareOptions, repo_id: str) -> Path:
    target, origin = options.ckpt_folder / repo_id, Origin(f"hub:{repo_id}")
    if _is_ready(target, origin, options):
        return target
    if (snapshot := find_cached(repo_id)) is not None:
        log.warning("%s is in the Hugging Face cache: %s", repo_id, snapshot)
        return _convert_local(options, local_source(snapshot))
    with _made(target, origin, keep_on_error=True) as folder:
        config = download_config(repo_id, folder, token=options.hf_token)
        name = resolve_config_name(repo_id, config, options.model_name)
        download_small_files(repo_id, folder, token=options.hf_token)
        _check_small_files(folder, name)
        download(repo_id, folder, token=options.hf_token)
        announce_size(folder, folder, model_name=name, dtype=options.dtype)
        convert_folder(folder, model_name=name, dtype=options.dtype)
    return target


def _fetch_gguf(options: PrepareOptions, hub_name: HubName) -> Path:
    name = options.model_name or hub_name.model_name
    target, origin = options.ckpt_folder / hub_name.model_name, Origin(f"hub:{hub_name}")
    if not _is_ready(target, origin, options):
        with _made(target, origin, keep_on_error=True) as folder:
            files = download_chosen(
                hub_name.repo_id, folder, lambda names: choose_gguf(hub_name, names), token=options.hf_token
            )
            _import_file(folder / files[0], folder, name.rpartition("/")[2], options.dtype)
            for file in files:
                (folder / file).unlink()
            remove_download_records(folder)
    return target


def _convert_local(options: PrepareOptions, source: LocalSource) -> Path:
    check_source(source.path)
    name = resolve_config_name(
        source.repo_id or source.path.resolve().name, read_config(source.path), options.model_name
    )
    target = options.ckpt_folder / (source.name if "/" in source.name else f"local/{source.name}")
    files = [source.path / name for name in wanted_files(path.name for path in source.path.iterdir())]
    place = f"hub:{source.repo_id}" if source.repo_id else f"folder:{source.path.resolve()}"
    origin = Origin(place, files)
    if not _is_ready(target, origin, options):
        with _made(target, origin) as folder, _named(folder, source.path):
            _check_small_files(source.path, name)
            announce_size(source.path, folder, model_name=name, dtype=options.dtype)
            link_or_copy(source.path, folder)
            convert_folder(folder, model_name=name, dtype=options.dtype)
    return target


@contextlib.contextmanager
def _named(folder: Path, source: Path) -> Iterator[None]:
    """Errors name the user's folder: the working folder is gone by then."""
    try:
        yield
    except CheckpointError as exc:
        raise CheckpointError(str(exc).replace(str(folder), str(source))) from exc


def _check_small_files(folder: Path, model_name: str) -> None:
    """What cannot be used is told before gigabytes are fetched and converted."""
    check_small_files(folder, model_name)
    with TextWorker() as worker:
        check_text(folder, worker)


def _import_gguf(options: PrepareOptions, source: Path) -> Path:
    parts = parts_of(source)
    for part in parts:
        check_present(part)
    name = options.model_name or suggested_name(source)
    target = options.ckpt_folder / "local" / name
    origin = Origin(f"gguf:{parts[0].resolve()}", parts, f"gguf:{source.name}:{source.stat().st_size}")
    if not _is_ready(target, origin, options):
        with _made(target, origin) as folder:
            _import_file(source, folder, name, options.dtype)
    return target


def _import_file(source: Path, folder: Path, name: str, dtype: str | None) -> None:
    with progress_bar(None, f"importing {source.name}", "tensors") as advance:
        import_gguf(source, folder, dtype=dtype, name=name, advance=advance)


def _make_random(options: PrepareOptions, config_name: str) -> Path:
    target = options.ckpt_folder / "random" / config_name.rpartition("/")[2]
    place = f"random:{config_name}:{options.seed}"
    origin = Origin(place, former_name=f"{place}:{options.dtype}")
    if not _is_ready(target, origin, options):
        with _made(target, origin) as folder:
            make_random(config_name, folder, seed=options.seed, dtype=options.dtype)
    return target


def _is_ready(target: Path, origin: Origin, options: PrepareOptions) -> bool:
    """Whether `target` holds what `origin` gives. Raises `ConfigError` where it holds another model."""
    if not (target / CONFIG_FILE).is_file():
        return False
    is_whole, dtype = (target / MODEL_FILE).is_file(), options.dtype
    spans = None if is_whole else _spans(target, options)
    if not is_whole and (spans is None or _existing_chunks(target, spans, options) is None):
        return False
    match, known = compare_origin(target, origin)
    if match is Match.OTHER:
        advice = "remove it, or choose another --ckpt-folder"
        raise ConfigError(f"{target} was made from {one_line(known)}, not from {origin.name}: {advice}")
    if match is Match.CHANGED:
        log.warning("%s has changed since %s was made from it: making that anew", known, target)
        return False
    return not is_whole or _has_dtype(target, dtype)


def _has_dtype(target: Path, dtype: str | None) -> bool:
    """Whether the whole model is there in a dtype, or in any if that is None."""
    try:
        stored = dtype_of(target / MODEL_FILE)
    except CheckpointError as exc:
        log.warning("%s; making it anew", exc)
        return False
    if dtype not in (None, stored):
        log.warning("%s is in %s: making it anew in %s", target, stored, dtype)
        return False
    log.warning("%s is prepared already, in %s", target, stored)
    return True


@contextlib.contextmanager
def _made(target: Path, origin: Origin, *, keep_on_error: bool = False) -> Iterator[Path]:
    """Yield a working folder that becomes `target`."""
    with partial_folder(target, keep_on_error=keep_on_error, kept=_KEPT) as folder:
        yield folder
        with progress_bar((folder / MODEL_FILE).stat().st_size, "recording digests", "B") as advance:
            record_digests(folder, advance)
        record_origin(folder, origin)
    log.warning("%s is ready", target)
