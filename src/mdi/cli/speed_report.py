"""What was predicted of a run and what came of it, in one line."""

import logging

from mdi.engine.speed import Comparison
from mdi.strings import format_rate

log = logging.getLogger(__name__)

MIN_TOKENS = 8  # fewer say nothing about a rate


def tell_speed(speed: Comparison) -> None:
    """Say it where something was predicted. Prompts count in neither."""
    if speed.tokens >= MIN_TOKENS:
        predicted, reached = format_rate(speed.predicted), format_rate(speed.reached)
        log.warning("predicted %s, reached %s tokens/s beside prompts", predicted, reached)
