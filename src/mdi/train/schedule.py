"""The learning rate at each step: a linear warm-up, then half a cosine down to the least rate."""

import math


def learning_rate(step: int, *, lr: float, min_lr: float, warmup_iters: int, max_iters: int) -> float:
    """The rate of a step, counted from 0. From `max_iters` on it is `min_lr`."""
    if step < warmup_iters:
        return lr * (step + 1) / (warmup_iters + 1)
    if step >= max_iters:
        return min_lr
    progress = (step - warmup_iters) / (max_iters - warmup_iters)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2
