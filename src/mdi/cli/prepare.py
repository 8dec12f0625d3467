"""Any form of a model -> a litGPT folder, and its chunks."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from mdi.checkpoint.adapters import ADAPTERS_FILE, FACTS_FILE, check_adapters, refuse_adapters
from mdi.checkpoint.chunks import chunks_bytes, write_chunks
from mdi.checkpoint.config import CONFIG_FILE
from mdi.checkpoint.digests import digests_file, record_digests
from mdi.checkpoint.folder import find_folder
from mdi.checkpoint.manifest import Manifest
from mdi.checkpoint.weights import MODEL_FILE, model_file, whole_models
from mdi.cli.origin import ORIGIN_FILE, Match, Origin, compare_origin, record_origin
from mdi.cli.prepared import asked_spans, check_chunks, check_given, check_text_files, existing_chunks, is_ready
from mdi.config.prepare_options import PrepareOptions
from mdi.convert import nanogpt
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
from mdi.convert.lora import merge_adapters, suggested_lora_name
from mdi.convert.random import make_random
from mdi.convert.sources import LocalSource, check_present, check_source, find_cached, local_source
from mdi.errors import CheckpointError, ConfigError
from mdi.files import partial_folder, storage_error
from mdi.formats import Mode
from mdi.model.span import Span
from mdi.progress import progress_bar
from mdi.strings import count, format_bytes

log = logging.getLogger(__name__)

_KEPT = ("chunks", "prompt_style.yaml")  # of a model that is made anew: digests tell whether chunks still belong to it


def prepare(options: PrepareOptions) -> tuple[Path, Manifest | None]:
    """Prepare the model; return its folder, and the manifest of its chunks if a split was asked for.

    What exists already is not made again. An interrupted run leaves nothing that looks finished.
    """
    makes_chunks = options.n_nodes is not None or options.nodes_config is not None
    if options.quantize != "none" and not makes_chunks and not _is_gguf(options.model or ""):
        raise ConfigError(
            "--quantize needs --n-nodes or --nodes-config: it is the chunks that are quantized, unless the model is a"
            " GGUF file"
        )
    folder = _prepare_folder(options)
    spans = asked_spans(folder, options)
    if spans is None:
        return folder, None
    if options.chunks_only and not (folder / ORIGIN_FILE).is_file():
        raise ConfigError(f"--chunks-only: {folder / MODEL_FILE} was not made by this program: remove it yourself")
    manifest = existing_chunks(folder, spans, options)
    if manifest is not None:
        if whole_models(folder):  # without it, the chunks were checked first
            check_chunks(folder, manifest)
        log.warning("chunks for %s are there already, in %s", count(len(spans), "node"), manifest.folder)
    else:
        manifest = _write_chunks(folder, spans, options)
    if options.chunks_only:
        _remove_whole_model(folder)
    return folder, manifest


def _is_gguf(model: str) -> bool:
    path = Path(model).expanduser()
    if path.is_file():
        return path.suffix not in nanogpt.SUFFIXES
    return not path.exists() and (hub_name := parse_hub_name(model)) is not None and hub_name.gguf is not None


def _write_chunks(folder: Path, spans: list[Span], options: PrepareOptions) -> Manifest:
    if whole_models(folder):
        n_bytes = chunks_bytes(folder, spans, options.dtype, options.quantize)
        log.warning("the chunks for %s take %s", count(len(spans), "node"), format_bytes(n_bytes))
    manifest = write_chunks(folder, spans, options.dtype, options.quantize)
    log.warning("chunks for %s are in %s", count(len(spans), "node"), manifest.folder)
    return manifest


def _remove_whole_model(folder: Path) -> None:
    """Leave the chunks alone."""
    for model in whole_models(folder):
        try:
            model.unlink(missing_ok=True)
        except OSError as exc:
            raise storage_error(model, exc) from exc


def _prepare_folder(options: PrepareOptions) -> Path:
    if options.merge_lora is not None:
        return _merge_lora(options, options.merge_lora)
    if options.random is not None:
        return _make_random(options, options.random)
    assert options.model is not None  # `PrepareOptions` has checked that one of the two is given
    path = Path(options.model).expanduser()
    if path.is_file():
        return (_import_nanogpt if path.suffix in nanogpt.SUFFIXES else _import_gguf)(options, path)
    if (path / CONFIG_FILE).is_file():
        check_given(path, options)
        return path
    if path.is_dir():
        refuse_adapters(path)
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
    if is_ready(target, origin, options):
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
    if not is_ready(target, origin, options, options.quantize):
        with _made(target, origin, options.quantize, keep_on_error=True) as folder:
            files = download_chosen(
                hub_name.repo_id, folder, lambda names: choose_gguf(hub_name, names), token=options.hf_token
            )
            _import_file(folder / files[0], folder, name.rpartition("/")[2], options)
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
    if not is_ready(target, origin, options):
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
    check_text_files(folder)


def _import_gguf(options: PrepareOptions, source: Path) -> Path:
    parts = parts_of(source)
    for part in parts:
        check_present(part)
    name = options.model_name or suggested_name(source)
    target = options.ckpt_folder / "local" / name
    origin = Origin(f"gguf:{parts[0].resolve()}", parts, f"gguf:{source.name}:{source.stat().st_size}")
    if not is_ready(target, origin, options, options.quantize):
        with _made(target, origin, options.quantize) as folder:
            _import_file(source, folder, name, options)
    return target


def _import_nanogpt(options: PrepareOptions, source: Path) -> Path:
    target = options.ckpt_folder / "local" / (options.model_name or nanogpt.suggested_name(source))
    origin = Origin(f"nanogpt:{source.resolve()}", [source])
    if not is_ready(target, origin, options):
        with _made(target, origin) as folder:
            nanogpt.import_nanogpt(source, folder, dtype=options.dtype, name=target.name)
            check_text_files(folder)
    return target


def _merge_lora(options: PrepareOptions, source: Path) -> Path:
    base = find_folder(Path(options.model)) if options.model is not None else None
    target = options.ckpt_folder / "local" / (options.model_name or suggested_lora_name(source))
    origin = Origin(f"lora:{source.resolve()}", [source / ADAPTERS_FILE, source / FACTS_FILE])
    check_adapters(source)
    if not is_ready(target, origin, options):
        with _made(target, origin) as folder:
            merge_adapters(source, folder, base=base, dtype=options.dtype)
    return target


def _import_file(source: Path, folder: Path, name: str, options: PrepareOptions) -> None:
    """Quantized as the chunks are to be: so they get the file's own blocks, and the disk holds no larger form."""
    _remove_whole_model(folder)  # of an interrupted attempt that was to be another form
    with progress_bar(None, f"importing {source.name}", "tensors") as advance:
        import_gguf(source, folder, dtype=options.dtype, quantization=options.quantize, name=name, advance=advance)
    check_text_files(folder)  # as it will be when the model is prepared again


def _make_random(options: PrepareOptions, config_name: str) -> Path:
    sizes = [str(size) for size in (options.n_embd, options.context_length) if size is not None]
    name = "-".join([config_name.rpartition("/")[2], *sizes])
    target = options.ckpt_folder / "random" / name
    place = ":".join(["random", config_name, str(options.seed), *sizes])
    origin = Origin(place, former_name=f"{place}:{options.dtype}")
    if not is_ready(target, origin, options):
        with _made(target, origin) as folder:
            make_random(
                config_name,
                folder,
                seed=options.seed,
                dtype=options.dtype,
                n_embd=options.n_embd,
                context_length=options.context_length,
            )
    return target


@contextlib.contextmanager
def _made(target: Path, origin: Origin, mode: Mode = "none", *, keep_on_error: bool = False) -> Iterator[Path]:
    """Yield a working folder that becomes `target`, and where the whole model is made in a mode."""
    kept = [*_KEPT, *_other_forms(target, origin)]
    with partial_folder(target, keep_on_error=keep_on_error, kept=kept) as folder:
        yield folder
        model = folder / model_file(mode)
        with progress_bar(model.stat().st_size, "recording digests", "B") as advance:
            record_digests(model, advance)
        record_origin(folder, origin)
    log.warning("%s is ready", target)


def _other_forms(target: Path, origin: Origin) -> list[str]:
    """The files of the whole model in other formats that `target` has from the same source."""
    if not whole_models(target) or compare_origin(target, origin)[0] is not Match.SAME:
        return []
    return [path.name for model in whole_models(target) for path in (model, digests_file(model))]
