"""What decides how the tokens of one sample are chosen. No tensors."""

from dataclasses import dataclass

from mdi.config.bounds import Interval, LogitBias, check_sampling
from mdi.text.stops import StopSequences


@dataclass(frozen=True)
class SamplingParams:
    """How one sample is generated; the defaults of all but temperature and top_k change nothing.

    A token is chosen from the model's logits in these steps, in vLLM's order (vllm/v1/sample/sampler.py):

    1. `logprobs`: log probabilities are taken here, from the logits as the model computes them.
    2. `logit_bias` is added, as in OpenAI's API.
    3. `repetition_penalty` divides positive logits and multiplies negative ones, of all tokens of the prompt and of the
       continuation so far (arXiv 1909.05858, as in Hugging Face's transformers).
    4. `frequency_penalty` is subtracted once for each time that the continuation has the token so far,
       `presence_penalty` once if it has it at all, as in OpenAI's API.
    5. Of a sample with a `Constraint`, only the tokens that may follow are left.
    6. With `temperature` 0 the largest is chosen; else the logits are divided by it.
    7. `min_p` keeps the tokens at least so many times as likely as the most likely one (arXiv 2407.01082).
    8. `top_k` keeps the most likely tokens; 0 keeps all. It commutes with `min_p` and is applied first.
    9. `top_p` keeps the smallest set of those left that reaches this probability (arXiv 1904.09751).
    10. One is drawn.

    Raises `ConfigError` for a value that is out of its bounds.
    """

    max_tokens: int
    stops: StopSequences = ()  # token sequences that end the sample and do not belong to it
    temperature: float = 0.8
    top_k: int = 200
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: LogitBias = ()
    logprobs: int | None = None  # how many of the most likely tokens are told, besides the chosen one; None: nothing

    def __post_init__(self) -> None:
        Interval(1).check("max_tokens", self.max_tokens)
        check_sampling(self)
