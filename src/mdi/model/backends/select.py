"""The backends, and the choice of the first that supports a model on a device."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mdi.errors import ConfigError
from mdi.formats import BackendChoice
from mdi.model.architecture import ModelConfig
from mdi.model.backends.native.library import UnavailableError, load_library
from mdi.model.backends.native.native_head import NativeHead
from mdi.model.backends.native.native_span import NativeSpan
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.head import EmbeddingAndHead
from mdi.model.span import Span
from mdi.model.span_engine import Head, HeadFactory, SpanEngine, SpanEngineFactory
from mdi.model.weights import Weights

log = logging.getLogger(__name__)

TORCH_TIME = "1.5 to 3 times as long"  # docs/performance.md


@dataclass(frozen=True)
class Backend:
    """One way to compute a span, and a head."""

    name: str
    supports: Callable[[ModelConfig, Placement], str | None]  # the reason why not; None: it does
    make_engine: SpanEngineFactory
    make_head: HeadFactory


BACKENDS = (  # the fastest first
    Backend("native", NativeSpan.supports, NativeSpan, NativeHead),
    Backend("torch", TorchSpan.supports, TorchSpan, EmbeddingAndHead),
)


def prepare(device: torch.device, backend: BackendChoice) -> bool:
    """Compile the kernels where they are not yet, before anybody waits for this node. What fails is said later.

    Returns whether there are kernels for the models that they support.
    """
    if device.type != "cpu" or backend == "torch":
        return False
    try:
        load_library()
    except UnavailableError:
        return False
    return True


def make_span_engine(config: ModelConfig, span: Span, weights: Weights, placement: Placement) -> SpanEngine:
    """The engine of the backend that was asked for, or else of the first that supports the model there.

    Args:
        weights: the span's tensors under their global names (`transformer.h.<layer>. ...`); others are ignored.

    Raises `ConfigError` if none does.
    """
    return _choose(config, placement).make_engine(config, span, weights, placement)


def make_head(config: ModelConfig, weights: Weights, placement: Placement) -> Head:
    """The embedding and the head of that backend. Raises `ConfigError` if there is none."""
    return _choose(config, placement).make_head(config, weights, placement)


def _choose(config: ModelConfig, placement: Placement) -> Backend:
    reasons: dict[str, str] = {}
    for backend in BACKENDS:
        if placement.backend not in ("auto", backend.name):
            continue
        if (reason := backend.supports(config, placement)) is None:
            if reasons and placement.device.type == "cpu":
                cost = f"which takes {TORCH_TIME} as native kernels"
                _say_once(f"computing with {backend.name}, {cost}: {reasons['native']}")
            return backend
        reasons[backend.name] = reason
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise ConfigError(f"{config.name}: no backend can compute this model on {placement.device} ({told})")


@functools.cache
def _say_once(text: str) -> None:
    """Log a line that would be the same for each stage of this process."""
    log.warning("%s", text)
