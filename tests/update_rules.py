"""AdamW and Adafactor in NumPy, float64, for any number of leaves."""

from collections.abc import Callable, Sequence

import numpy as np

Leaves = list[np.ndarray]
Gradient = Callable[[int, Leaves], Leaves]


def clipped(gradients: Leaves, most: float) -> Leaves:
    """Scaled down together, so that their common norm is `most` at most."""
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients))
    return [g * min(1.0, most / norm) for g in gradients]


def adamw(
    params: Leaves,
    gradient: Gradient,
    *,
    rates: Sequence[float],
    weight_decay: float,
    clip: float,
) -> Leaves:
    """Loshchilov and Hutter, 2019, algorithm 2; one update a rate."""
    params = [np.asarray(p, np.float64) for p in params]
    first = [np.zeros_like(p) for p in params]
    second = [np.zeros_like(p) for p in params]
    for step, rate in enumerate(rates):
        found = clipped(gradient(step, params), clip)
        first = [0.9 * m + 0.1 * g for m, g in zip(first, found, strict=True)]
        second = [
            0.999 * v + 0.001 * g**2 for v, g in zip(second, found, strict=True)
        ]
        unbiased = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        params = [
            p
            - rate * (m / unbiased[0] / (np.sqrt(v / unbiased[1]) + 1e-8))
            - rate * weight_decay * p
            for p, m, v in zip(params, first, second, strict=True)
        ]
    return params


def adafactor(
    params: Leaves,
    gradient: Gradient,
    *,
    rates: Sequence[float],
    weight_decay: float,
    clip: float,
) -> Leaves:
    """Shazeer and Stern, 2018 (arXiv 1804.04235), as T5X tunes prompts.

    Not factored (their algorithm 4's second moment whole), no momentum, steps
    not relative to the parameters, beta2 = 1 - t^-0.8, each leaf's update
    clipped to a root mean square of 1; T5X subtracts `weight_decay * params`,
    whatever the rate.
    """
    params = [np.asarray(p, np.float64) for p in params]
    second = [np.zeros_like(p) for p in params]
    for step, rate in enumerate(rates):
        found = clipped(gradient(step, params), clip)
        beta2 = 1 - (step + 1.0) ** -0.8
        second = [
            beta2 * v + (1 - beta2) * (g**2 + 1e-30)
            for v, g in zip(second, found, strict=True)
        ]
        moved = [g / np.sqrt(v) for g, v in zip(found, second, strict=True)]
        moved = [u / max(1.0, np.sqrt(np.square(u).mean())) for u in moved]
        params = [
            p - rate * u - weight_decay * p
            for p, u in zip(params, moved, strict=True)
        ]
    return params
