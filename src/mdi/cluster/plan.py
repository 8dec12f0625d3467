"""What a run is to do, worked out and checked before any weights are loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from litgpt.config import Config

from mdi.checkpoint.chunks import (
    MANIFEST_FILE,
    Manifest,
    chunk_name,
    chunks_folder,
    is_fresh,
    read_manifest,
    write_chunks,
)
from mdi.checkpoint.config import find_models, load_config
from mdi.checkpoint.weights import MODEL_FILE
from mdi.cluster.partition import Load, split
from mdi.config.network import NetworkConfig, node_name
from mdi.config.options import StarterOptions
from mdi.config.paths import CHECKPOINTS_DIR
from mdi.errors import CheckpointError, ConfigError
from mdi.formats import Mode
from mdi.ids import NodeId
from mdi.model.shapes import head_weight, layer_weights
from mdi.model.span import Span
from mdi.text.prompts import encode_prompt, load_prompts
from mdi.text.stops import StopSequences
from mdi.text.styles import PLAIN, load_style, stop_sequences
from mdi.text.tokenizer import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A model, its split, and the prompts."""

    folder: Path
    config: Config
    spans: list[Span]
    weights: Path  # the file with the starter's tensors
    manifest: Manifest | None  # None: the starter knows no other node's chunk
    tokenizer: Tokenizer
    stops: StopSequences
    prompts: list[str]
    prompt_ids: list[list[int]]
    continues: bool  # whether the samples go on from their prompts, rather than answer them
    context: int  # positions per sample

    @property
    def name(self) -> str:
        """The model's name, `org/name` where it lies two folders deep."""
        return "/".join(self.folder.resolve().parts[-2:])

    def chunk_of(self, node: int) -> Path:
        """The chunk file of a node, where this machine has it."""
        return chunks_folder(self.folder, len(self.spans)) / chunk_name(node)


def plan_job(options: StarterOptions, network: NetworkConfig) -> Job:
    """Check the model folder and the prompts, choose the split and write the chunks that it needs."""
    folder = find_folder(options.ckpt, options.chunk)
    config = load_config(folder)
    tokenizer = load_tokenizer(folder)
    style = load_style(folder, config.name, tokenizer, options.prompt_style)
    stops = () if options.ignore_eos else stop_sequences(folder, tokenizer, style)
    prompts = load_prompts(options.prompt, options.n_samples)
    prompt_ids = [encode_prompt(tokenizer, style, prompt) for prompt in prompts]
    context = fit_context(options, config, prompt_ids)
    spans, manifest = choose_spans(folder, config, network, options)
    return Job(
        folder=folder,
        config=config,
        spans=spans,
        weights=_starter_weights(folder, len(spans), options),
        manifest=manifest,
        tokenizer=tokenizer,
        stops=stops,
        prompts=prompts,
        prompt_ids=prompt_ids,
        continues=style.name == PLAIN.name,
        context=context,
    )


def find_folder(ckpt: Path | None, chunk: Path | None = None) -> Path:
    """The model folder: `ckpt`, or the one that `chunk` lies in. Raises `ConfigError` listing what there is."""
    if ckpt is None and chunk is not None and len(chunk.resolve().parents) > 3:
        ckpt = chunk.resolve().parents[2]  # <folder>/chunks/<N>nodes/<chunk>
    if ckpt is not None and (ckpt / "model_config.yaml").is_file():
        return ckpt
    root = ckpt if ckpt is not None and ckpt.is_dir() else CHECKPOINTS_DIR
    models = [str(path) for path in find_models(root)]
    if models:
        advice = f"choose one of these with --ckpt: {', '.join(models)}"
    else:
        advice = "prepare one with prepare_model.py first"
    raise ConfigError(f"{'no model given' if ckpt is None else f'{ckpt}: no prepared model there'}; {advice}")


def fit_context(options: StarterOptions, config: Config, prompt_ids: Sequence[Sequence[int]]) -> int:
    """Positions per sample. Raises `ConfigError` with the numbers where a prompt does not fit."""
    longest = max(map(len, prompt_ids))
    needed = longest + options.n_tokens
    if options.sequence_length is not None and options.sequence_length > config.block_size:
        raise ConfigError(f"--sequence-length {options.sequence_length}: this model's context is {config.block_size}")
    context = options.sequence_length or min(needed, config.block_size)
    if longest >= context:
        raise ConfigError(
            f"the longest prompt takes {longest} tokens; the context of {context} leaves no room to answer it"
            f" (this model allows {config.block_size}, see --sequence-length)"
        )
    if needed > context:
        log.warning(
            "the longest prompt of %d tokens and --n-tokens %d exceed the context of %d: such a sample ends there",
            longest,
            options.n_tokens,
            context,
        )
    return context


def choose_spans(
    folder: Path, config: Config, network: NetworkConfig, options: StarterOptions
) -> tuple[list[Span], Manifest | None]:
    """The split of this run, with the manifest of its chunks; they are written where they are missing."""
    n_nodes = len(network.nodes)
    load = Load(layer_weights(config), head_weight(config), network.shares)
    if n_nodes == 1:
        return split(options.split, load), None
    manifest = read_manifest(chunks_folder(folder, n_nodes))
    if manifest is not None and (len(manifest.spans), manifest.spans[-1].stop) != (n_nodes, config.n_layer):
        files = chunks_folder(folder, n_nodes)
        raise CheckpointError(
            f"{files / MANIFEST_FILE}: damaged: its spans are not {config.n_layer} layers on {n_nodes} nodes"
        )
    spans = list(manifest.spans) if manifest and options.split == "auto" else split(options.split, load)
    model = folder / MODEL_FILE
    if (
        manifest is not None
        and _serves(manifest, spans, options.quantize)
        and (not model.is_file() or is_fresh(folder, manifest))
    ):
        return spans, manifest
    if model.is_file():
        return spans, write_chunks(folder, spans)
    if manifest is not None:
        raise CheckpointError(
            f"{folder}: its chunks have the split {_counts(manifest.spans)} with quantization {manifest.quantization},"
            f" not {_counts(spans)} with {options.quantize or 'any'}, and without {MODEL_FILE} none can be made;"
            " leave out --split and --quantize"
        )
    return spans, None


def _serves(manifest: Manifest, spans: list[Span], mode: Mode | None) -> bool:
    """Whether the chunks have the split, and weights that are or can be made what was asked for."""
    return list(manifest.spans) == spans and (manifest.quantization == "none" or mode in (None, manifest.quantization))


def can_resplit(job: Job) -> bool:
    """Whether the layers can be spread over one node less: from the whole model, or as chunks that lie ready."""
    fewer = len(job.spans) - 1
    return (job.folder / MODEL_FILE).is_file() or (chunks_folder(job.folder, fewer) / MANIFEST_FILE).is_file()


def resplit(job: Job, network: NetworkConfig, options: StarterOptions) -> Job:
    """The same job on other nodes, with chunks for them. Raises `CheckpointError` where they cannot be made."""
    spans, manifest = choose_spans(job.folder, job.config, network, replace(options, split="auto"))
    if manifest is None and len(spans) > 1:
        raise CheckpointError(f"{job.folder}: without {MODEL_FILE} its layers cannot be spread anew")
    return replace(
        job,
        spans=spans,
        manifest=manifest,
        weights=_starter_weights(job.folder, len(spans), replace(options, chunk=None)),
    )


def _counts(spans: Sequence[Span]) -> str:
    return ",".join(str(len(span)) for span in spans)


def _starter_weights(folder: Path, n_nodes: int, options: StarterOptions) -> Path:
    if options.chunk is not None:
        return options.chunk
    chunk, model = chunks_folder(folder, n_nodes) / chunk_name(0), folder / MODEL_FILE
    prefers_chunk = n_nodes > 1 or _is_quantized(folder, options.quantize)
    for path in (chunk, model) if prefers_chunk else (model, chunk):
        if path.is_file():
            return path
    raise CheckpointError(f"{folder}: neither {MODEL_FILE} nor chunks for {n_nodes} nodes; run prepare_model.py first")


def _is_quantized(folder: Path, mode: Mode | None) -> bool:
    """Whether a chunk of the whole model has the quantization that was asked for."""
    manifest = read_manifest(chunks_folder(folder, 1)) if mode not in (None, "none") else None
    return manifest is not None and manifest.quantization == mode


@dataclass(frozen=True)
class Plan:
    """Who takes part, and with which layers. A node's *place* is its index in `members`."""

    members: tuple[NodeId, ...]  # numbers in the network, in ring order; the starter (0) is the first
    job: Job  # its spans and chunks are those of the members, place by place
    n_slots: int  # samples that are in the ring at once

    @property
    def names(self) -> list[str]:
        return [node_name(number) for number in self.members]

    def __str__(self) -> str:
        parts = zip(self.job.spans, self.names, strict=True)
        return ", ".join(f"{span.start} to {span.stop - 1} on {name}" for span, name in parts)
