"""Closed-form linear readouts of features: the mathematics of transferability.

Functions of [M, E, D] features and [E, C] target columns (indicators of
classes, or scores), jitted; they are called where JAX has float64 turned on,
and say in `transferability.py` what they mean.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from panda_jax.types import Array

# LogME looks for the precision ratio alpha / beta between these multiples of
# the largest eigenvalue, `_PER_FOLD` points a factor e.
_RATIOS = (1e-28, 1e12)
_PER_FOLD = 4
# Bounds the evidence of targets that the features fit exactly: far above
# float64's rounding, far below what fp32 features resolve.
_LEAST_RESIDUAL = 1e-22
# Of fp32 features, some units in the last place.
_ROUNDING = 1e-6
# Scores of two classes that differ by less are a tie, whatever the order of
# summation made of them.
_TIE = 1e-9


@jax.jit
def log_me(features: Array, columns: Array) -> Array:
    """[M, E, D] x [E, C] -> [M]."""
    seen = (columns != 0).any(0)

    def one_source(x: Array) -> Array:
        left, strength = _decomposed(x)
        evidence = jax.vmap(_evidence, in_axes=(None, None, 1))
        each = evidence(left, strength, columns)
        return jnp.where(seen, each, 0).sum() / jnp.maximum(seen.sum(), 1)

    # One at a time: a float64 copy of all features need not fit.
    return jax.lax.map(one_source, features)


def _evidence(left: Array, strength: Array, y: Array) -> Array:
    """The largest log evidence of one column, divided by E."""
    rows = len(y)
    along = left.T @ y
    outside = jnp.square(y - left @ along).sum()
    squares = jnp.square(along)
    total = jnp.square(y).sum()
    # Zero columns get a value here that the caller drops.
    total = jnp.where(total > 0, total, 1.0)
    floor = jnp.maximum(outside, _LEAST_RESIDUAL * total)

    def profile(log_ratio: Array) -> Array:
        """With r = alpha / beta, at beta = E / (|F m - y|^2 + r |m|^2)."""
        share = jnp.exp(log_ratio) / (jnp.exp(log_ratio) + strength)
        variance = (squares @ share + floor) / rows
        constant = 1 + math.log(2 * math.pi)
        return (jnp.log(share).sum() / rows - jnp.log(variance) - constant) / 2

    largest = strength.max()
    scale = jnp.log(jnp.where(largest > 0, largest, 1.0))
    low, high = (math.log(ratio) for ratio in _RATIOS)
    grid = scale + jnp.linspace(low, high, round(_PER_FOLD * (high - low)))
    best = grid[jnp.argmax(jax.lax.map(profile, grid))]
    return profile(_golden(profile, best, reach=2 / _PER_FOLD))


def _golden(
    function: Callable[[Array], Array], middle: Array, *, reach: float
) -> Array:
    """Where a function is largest within `reach`, having one maximum there."""
    golden = (math.sqrt(5) - 1) / 2

    def narrow(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        step = golden * (high - low)
        rising = function(high - step) < function(low + step)
        return (
            jnp.where(rising, high - step, low),
            jnp.where(rising, high, low + step),
        )

    # A value is flat at its maximum: 1e-8 there is 1e-16 of the value.
    low, high = jax.lax.fori_loop(
        0, 40, narrow, (middle - reach, middle + reach)
    )
    return (low + high) / 2


@functools.partial(jax.jit, static_argnames=("shrinkage",))
def h_score(features: Array, columns: Array, *, shrinkage: bool) -> Array:
    """[M, E, D] x [E, C] -> [M]."""
    basis, strength = _decomposed(_centred(columns))
    basis = basis * (strength > 0)

    def one_source(x: Array) -> Array:
        rows, width = x.shape
        x = _centred(x, _ROUNDING)
        left, strength = _decomposed(x)
        # What of each direction's variance the targets tell; cov(E[f | y]) is
        # V diag(s) U' B B' U diag(s) V' / E for x = U diag(s) V'.
        told = jnp.square(basis.T @ left).sum(0) * (strength > 0)
        if not shrinkage:
            return told.sum()
        alpha = _ledoit_wolf(x, strength)
        kept = (1 - alpha) * strength
        divisor = kept + alpha * strength.sum() / width
        return (told * kept / jnp.where(divisor > 0, divisor, 1)).sum()

    return jax.lax.map(one_source, features)


def _ledoit_wolf(x: Array, strength: Array) -> Array:
    """How much to shrink the covariance of centred rows, 0 to 1.

    Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional
    covariance matrices", lemma 3.3 and equation 14.

    Args:
      x: [E, D] centred.
      strength: its squared singular values.
    """
    rows, width = x.shape
    second = jnp.square(strength / rows).sum()
    mean = strength.sum() / rows / width
    distance = second - width * mean**2
    fourth = jnp.square(jnp.square(x).sum(1)).sum() / rows
    noise = jnp.minimum((fourth - second) / rows, distance)
    # A covariance that is its own target already needs no shrinking.
    apart = distance > 1e-12 * second
    return jnp.where(apart, noise / jnp.where(apart, distance, 1), 0)


@functools.partial(jax.jit, static_argnames=("classes",))
def left_out(
    features: Array,
    columns: Array,
    penalty: Array,
    members: Array,
    *,
    classes: bool,
) -> Array:
    """[M, E, D] x [E, C] -> [M]: how right each row's prediction is.

    `members` [G, S] are the rows of each group that is left out together, -1
    past a group's last.
    """
    y = _centred(columns)
    rows = len(y)
    real = members >= 0
    both = real[:, :, None] & real[:, None, :]
    grouped = jnp.where(real[..., None], y[members], 0)
    # Each row's y less the mean of those outside its group: y's own mean is 0.
    outside = rows - real.sum(1)[:, None, None]
    apart = grouped + grouped.sum(1, keepdims=True) / outside
    apart = jnp.where(real[..., None], apart, 0)

    def one_source(x: Array) -> Array:
        x = _centred(x, _ROUNDING)
        deviation = x.std(0)
        x = x / jnp.where(deviation > 0, deviation, 1)
        left, strength = _decomposed(x)
        share = strength / (strength + penalty * x.shape[1])
        fitted = (left * share) @ (left.T @ y)
        own = left[members]
        hat = jnp.where(both, (own * share) @ own.swapaxes(1, 2), 0)
        # y_g - (1 - H_gg)^-1 (y_g - fitted_g) less the others' mean of y, where
        # H is hat + 1 / E by the intercept; written so that features that say
        # nothing give 0 and no rounding of it.
        told = jnp.where(real[..., None], fitted[members], 0) - hat @ apart
        unit = (1 + 1e-12) * jnp.eye(hat.shape[1])
        slopes = jnp.linalg.solve(unit - hat - both / rows, told)
        slope = (
            jnp.zeros_like(y)
            .at[jnp.where(real, members, rows)]
            .set(slopes, mode="drop")
        )
        if classes:
            return _accuracy(columns.mean(0) + slope, columns)
        return _pearson(slope, columns)

    return jax.lax.map(one_source, features)


def _accuracy(predictions: Array, columns: Array) -> Array:
    best = predictions >= predictions.max(1, keepdims=True) - _TIE
    return ((best * columns).sum(1) / best.sum(1)).mean()


def _pearson(predictions: Array, columns: Array) -> Array:
    def unit(x: Array) -> Array:
        x = _centred(x)
        largest = jnp.abs(x).max(0)
        x = x / jnp.where(largest > 0, largest, 1)
        norm = jnp.sqrt(jnp.square(x).sum(0))
        return x / jnp.where(norm > 0, norm, 1)

    return (unit(predictions) * unit(columns)).sum(0).mean()


def _centred(x: Array, rounding: float = 1e-12) -> Array:
    """[E, D] less its mean over rows, in float64; constant columns are 0.

    Args:
      x: its columns.
      rounding: relative to a column's largest magnitude, what is no variation.
        Standardising would make a feature of it.
    """
    x = jnp.asarray(x, jnp.float64)
    constant = jnp.ptp(x, axis=0) <= rounding * jnp.abs(x).max(0)
    return jnp.where(constant, 0, x - x.mean(0))


def _decomposed(x: Array) -> tuple[Array, Array]:
    """Left singular vectors [E, K] and squared singular values [K] in float64.

    Values that rounding alone made are 0, by NumPy's rule for the rank.
    """
    x = jnp.asarray(x, jnp.float64)
    left, values, _ = jnp.linalg.svd(x, full_matrices=False)
    least = values.max() * max(x.shape) * jnp.finfo(jnp.float64).eps
    return left, jnp.square(jnp.where(values > least, values, 0))
