"""The samples that a run is asked for: prompts encoded, limits checked, before any weights are loaded."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mdi.checkpoint.folder import ModelFolder
from mdi.config.bounds import check_biased_tokens
from mdi.config.options import RingOptions, SamplingOptions, StarterOptions
from mdi.engine.sample import Sample
from mdi.engine.sampler import generator_for
from mdi.engine.sampling_params import SamplingParams
from mdi.errors import ConfigError
from mdi.text.prompts import encode_prompt, load_prompts
from mdi.text.stops import StopSequences
from mdi.text.styles import PLAIN, load_style, stop_sequences
from mdi.text.tokenizer import Tokenizer, load_tokenizer
from mdi.text.worker_process import TextWorker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Requests:
    """What is to be generated, and how it is shown."""

    tokenizer: Tokenizer
    prompts: list[str]
    samples: list[Sample]
    context: int  # positions per sample
    is_completion: bool  # whether the samples go on from their prompts, rather than answer them


def load_requests(options: StarterOptions, model: ModelFolder, worker: TextWorker) -> Requests:
    """Read and encode the prompts. Raises `ConfigError` with the numbers where one does not fit the model."""
    check_biased_tokens(options.logit_bias, model.config.padded_vocab_size, "--logit-bias")
    tokenizer = load_tokenizer(model.path, worker)
    style = load_style(model.path, model.config.name, tokenizer, worker, options.prompt_style)
    stops = () if options.ignore_eos else stop_sequences(model.path, tokenizer, style)
    prompts = load_prompts(options.prompt, options.n_samples)
    ids_of = {prompt: tuple(encode_prompt(tokenizer, style, prompt)) for prompt in dict.fromkeys(prompts)}
    prompt_ids = [ids_of[prompt] for prompt in prompts]
    context = fit_context(options, model.config.block_size, prompt_ids)
    samples = samples_for(options, prompt_ids, stops)
    return Requests(tokenizer, prompts, samples, context, is_completion=style.name == PLAIN.name)


def samples_for(
    options: SamplingOptions, prompt_ids: Sequence[Sequence[int]], stops: StopSequences = ()
) -> list[Sample]:
    """A sample for each prompt, with a generator of its own that depends on the seed and its number alone."""
    params = SamplingParams(
        options.n_tokens,
        stops,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        repetition_penalty=options.repetition_penalty,
        logit_bias=options.logit_bias,
        logprobs=options.logprobs,
    )
    return [
        Sample(number, tuple(ids), params, generator_for(options.seed, number)) for number, ids in enumerate(prompt_ids)
    ]


def context_of(options: RingOptions, block_size: int, wanted: int) -> int:
    """What `--sequence-length` says, else what is wanted as far as the model allows. Raises `ConfigError`."""
    if options.sequence_length is not None and options.sequence_length > block_size:
        raise ConfigError(f"--sequence-length {options.sequence_length}: this model's context is {block_size}")
    return options.sequence_length or min(wanted, block_size)


def fit_context(options: StarterOptions, block_size: int, prompt_ids: Sequence[Sequence[int]]) -> int:
    """Positions per sample. Raises `ConfigError` with the numbers where a prompt does not fit."""
    longest = max(map(len, prompt_ids))
    needed = longest + options.n_tokens
    context = context_of(options, block_size, needed)
    if longest >= context:
        raise ConfigError(
            f"the longest prompt takes {longest} tokens; the context of {context} leaves no room to answer it"
            f" (this model allows {block_size}, see --sequence-length)"
        )
    if needed > context:
        log.warning(
            "the longest prompt of %d tokens and --n-tokens %d exceed the context of %d: such a sample ends there",
            longest,
            options.n_tokens,
            context,
        )
    return context
