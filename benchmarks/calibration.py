"""Do the report's intervals cover, and do its tests keep their level?

    python benchmarks/calibration.py --draws=4000 --out=FILE.json

Draws tables of differences by target and seed from worlds whose mean is known,
and gives them to `inference.infer`, which the report uses, and to other ways to
test the same: t over targets, which takes a target's seeds for its own; t over
seeds; the pigeonhole bootstrap (Owen 2007) with percentiles; two-way clustered
errors (Cameron, Gelbach & Miller 2011); the plain quasi-F (Satterthwaite's df,
nothing pooled). A world says which share of the mean's variance is the
targets', the seeds' and the rest's. Power is at 1, 2, 3 and 4 standard errors.
Prints a table, and writes everything as JSON.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from panda_jax.experiments import inference

LEVEL = 0.05
# Targets x seeds, and the share of cells that are missing.
DESIGNS = [
    (1, 5, 0.0),
    (9, 1, 0.0),
    (9, 2, 0.0),
    (2, 5, 0.0),
    (2, 2, 0.0),
    (3, 3, 0.0),
    (4, 3, 0.0),
    (5, 3, 0.0),
    (9, 3, 0.0),
    (21, 3, 0.0),
    (5, 5, 0.0),
    (9, 5, 0.0),
    (9, 10, 0.0),
    (9, 3, 0.2),
    (9, 5, 0.2),
    (5, 5, 0.2),
]


class World(NamedTuple):
    """Parts of the variance of the mean, and how they are drawn.

    Attributes:
      targets, seeds, rest: their sum is 1.
      tails: `normal`, or `t3` (three degrees of freedom), or `skew` (an
        exponential), of all parts.
    """

    targets: float
    seeds: float
    rest: float
    tails: str = "normal"


def worlds(targets: int, seeds: int) -> dict[str, World]:
    """The worlds of a design; the third has half of each cell's variance."""
    half = np.array([0.0, 0.5 / seeds, 0.5 / (targets * seeds)])
    return {
        "rest alone": World(0, 0, 1),
        "targets": World(0.8, 0, 0.2),
        "half of a cell is the seed's": World(*(half / half.sum())),
        "seeds": World(0, 0.8, 0.2),
        "targets and seeds": World(0.4, 0.4, 0.2),
        "mostly seeds": World(0.1, 0.85, 0.05),
        "heavy tails": World(0.4, 0.4, 0.2, "t3"),
        "skewed targets and seeds": World(0.4, 0.4, 0.2, "skew"),
    }


def noise(
    rng: np.random.Generator, tails: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Mean 0 and variance 1."""
    if tails == "t3":
        return rng.standard_t(3, shape) / np.sqrt(3)
    if tails == "skew":
        return rng.exponential(size=shape) - 1
    return rng.normal(size=shape)


def tables(
    rng: np.random.Generator, world: World, weights: np.ndarray, draws: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Tables whose mean has variance 1 about 0.

    Returns:
      [draws, targets, seeds], and [draws] what these targets, and these seeds,
      add to the mean.
    """
    T, S = weights.shape
    total, parts = np.zeros((draws, T, S)), []
    for variance, share, shape in (
        (world.targets, weights.sum(1), (T, 1)),
        (world.seeds, weights.sum(0), (1, S)),
        (world.rest, weights.ravel(), (T, S)),
    ):
        scale = np.sqrt(variance / (share @ share))
        part = scale * noise(rng, world.tails, (draws, *shape))
        parts.append((part * weights).sum((1, 2)))
        total += part
    return total, parts[:2]


def pattern(targets: int, seeds: int, missing: float) -> np.ndarray:
    """Weights: each target as much, and each of its seeds."""
    rng = np.random.default_rng(targets * seeds)
    known = np.ones((targets, seeds))
    for place in rng.permutation(targets * seeds)[: int(missing * known.size)]:
        known.flat[place] = 0
        # Each target keeps a seed, each seed a target.
        if not (known.any(0).all() and known.any(1).all()):
            known.flat[place] = 1
    return known / known.sum(1, keepdims=True) / targets


def over(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """The t test of the means by target or by seed: p."""
    return lambda values: np.asarray(
        stats.ttest_1samp(values.mean(axis=axis), 0, axis=1).pvalue
    )


def squares(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, and mean squares of targets, seeds and the rest."""
    T, S = values.shape[1:]
    mean = values.mean((1, 2))
    rows, columns = values.mean(2), values.mean(1)
    rest = values - rows[:, :, None] - columns[:, None] + mean[:, None, None]
    return (
        mean,
        S * rows.var(1, ddof=1),
        T * columns.var(1, ddof=1),
        (rest**2).sum((1, 2)) / ((T - 1) * (S - 1)),
    )


def clustered(values: np.ndarray) -> np.ndarray:
    T, S = values.shape[1:]
    mean, rows, columns, _ = squares(values)
    cells = values.reshape(len(values), -1).var(1, ddof=1)
    variance = np.maximum.reduce([rows + columns - cells, rows, columns])
    t = np.abs(mean) / np.sqrt(variance / (T * S))
    return 2 * stats.t.sf(t, min(T, S) - 1)


def quasi_f(values: np.ndarray) -> np.ndarray:
    T, S = values.shape[1:]
    mean, rows, columns, rest = squares(values)
    a, b = np.maximum(rows, rest), np.maximum(columns, rest)
    variance = a + b - rest
    free = a**2 / (T - 1) + b**2 / (S - 1) + rest**2 / ((T - 1) * (S - 1))
    t = np.abs(mean) / np.sqrt(variance / (T * S))
    return 2 * stats.t.sf(t, variance**2 / free)


def pigeonhole(values: np.ndarray, resamples: int = 400) -> np.ndarray:
    """p from whether the 95% percentile interval holds 0: 0 or 1."""
    rng = np.random.default_rng(0)
    T, S = values.shape[1:]
    rows, columns = (
        rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
        for n in (T, S)
    )
    means = np.einsum("rt,dts,rs->dr", rows, values, columns, optimize=True)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    return np.where((low <= 0) & (high >= 0), 1.0, 0.0)


OTHERS = {
    "t over targets": over(2),
    "t over seeds": over(1),
    "pigeonhole bootstrap": pigeonhole,
    "two-way clustered": clustered,
    "quasi-F, nothing pooled": quasi_f,
}


def study(
    targets: int,
    seeds: int,
    missing: float,
    draws: int,
    *,
    others: bool = True,
) -> list[dict[str, Any]]:
    """A line a world; `others` whether by other ways too."""
    weights = pattern(targets, seeds, missing)
    lines = []
    for number, (name, world) in enumerate(worlds(targets, seeds).items()):
        rng = np.random.default_rng([targets, seeds, number])
        values, (of_targets, of_seeds) = tables(rng, world, weights, draws)
        found = inference.infer(values, weights)
        # What is true of other units, or of these where it is for these.
        for part, held in (
            (of_targets, found.rows),
            (of_seeds, found.columns),
        ):
            if not held:
                values = values - part[:, None, None]
        found = inference.infer(values, weights)
        line: dict[str, Any] = {
            "targets": targets,
            "seeds": seeds,
            "missing": missing,
            "world": name,
            "holds_for": [
                side
                for side, held in (
                    ("targets", found.rows),
                    ("seeds", found.columns),
                )
                if held
            ],
        }
        if np.isnan(found.p).all():
            lines.append(line | {"p": None})
            continue
        line["rejects"] = float((found.p <= LEVEL).mean())
        line["covers"] = float(((found.low <= 0) & (found.high >= 0)).mean())
        line["width"] = float(np.median(found.high - found.low))
        line["power"] = [
            float((inference.infer(values + effect, weights).p <= LEVEL).mean())
            for effect in (1, 2, 3, 4)
        ]
        if others and not missing and min(targets, seeds) > 1:
            line["others"] = {
                other: float((p(values) <= LEVEL).mean())
                for other, p in OTHERS.items()
            }
        lines.append(line)
    return lines


def main() -> None:
    """Every design; prints and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    lines = []
    for design in DESIGNS:
        for line in study(*design, args.draws):
            lines.append(line)
            shown = line.get("rejects", float("nan"))
            others = line.get("others", {})
            print(
                *design,
                line["world"],
                f"rejects {shown:.3f}",
                *(f"{name} {value:.3f}" for name, value in others.items()),
                "power",
                line.get("power"),
                sep="; ",
                flush=True,
            )
    if args.out:
        about = {"draws": args.draws, "level": LEVEL, "lines": lines}
        args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
