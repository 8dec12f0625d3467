"""The backends, and the choice of the first that supports a model on a device."""

from collections.abc import Callable
from dataclasses import dataclass

from mdi.errors import ConfigError
from mdi.model.architecture import ModelConfig
from mdi.model.backends.torch_span import TorchSpan
from mdi.model.build import Placement
from mdi.model.span import Span
from mdi.model.span_engine import SpanEngine, SpanEngineFactory
from mdi.model.weights import Weights


@dataclass(frozen=True)
class Backend:
    """One way to compute a span."""

    name: str
    supports: Callable[[ModelConfig, Placement], str | None]  # the reason why not; None: it does
    make: SpanEngineFactory


BACKENDS = (Backend("torch", TorchSpan.supports, TorchSpan),)  # the fastest first


def make_span_engine(config: ModelConfig, span: Span, weights: Weights, placement: Placement) -> SpanEngine:
    """The engine of the first backend that supports the model there. Raises `ConfigError` if none does.

    Args:
        weights: the span's tensors under their global names (`transformer.h.<layer>. ...`); others are ignored.
    """
    reasons = []
    for backend in BACKENDS:
        if (reason := backend.supports(config, placement)) is None:
            return backend.make(config, span, weights, placement)
        reasons.append(f"{backend.name}: {reason}")
    raise ConfigError(f"{config.name}: no backend can compute this model on {placement.device} ({'; '.join(reasons)})")
