"""Means over crossed units: exact cases by SciPy and by hand, then worlds."""

import importlib
import math
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from panda_jax.experiments import inference
from panda_jax.experiments.report.board import Board, Row
from panda_jax.experiments.report.comparisons import compare

ROOT = pathlib.Path(__file__).resolve().parents[2]


def flat(T, S):
    return np.full((T, S), 1 / (T * S))


@pytest.mark.parametrize(("T", "S"), [(6, 1), (6, 2), (1, 6), (2, 6)])
def test_few_units_of_a_side_are_not_drawn(rng, T, S):
    """The t test of the other side's means, and it says so."""
    values = rng.normal(size=(T, S)) + 0.5
    found = inference.infer(values, flat(T, S), confidence=0.9)
    wanted = stats.ttest_1samp(values.mean(1 if S < 3 else 0), 0)
    low, high = wanted.confidence_interval(0.9)
    assert (found.rows, found.columns) == (S < 3, T < 3)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(wanted.pvalue)


def test_of_too_few_nothing_is_said(rng):
    for T, S in ((1, 1), (2, 1), (2, 2)):
        found = inference.infer(rng.normal(size=(T, S)), flat(T, S))
        assert np.isnan([found.low, found.high, found.p]).all()
        assert (found.rows, found.columns) == (False, False)


def test_a_whole_table_by_hand(rng):
    """Clark's quasi-F and Satterthwaite's df, by their formulas."""
    T, S = 7, 5
    values = 3 * rng.normal(size=(T, 1)) + 3 * rng.normal(size=(1, S))
    values = values + rng.normal(size=(T, S))
    mean = values.mean()
    by_row, by_column = values.mean(1), values.mean(0)
    rest = values - by_row[:, None] - by_column + mean
    A, B = S * by_row.var(ddof=1), T * by_column.var(ddof=1)
    E = (rest**2).sum() / ((T - 1) * (S - 1))
    variance = (A + B - E) / (T * S)
    freedom = (A + B - E) ** 2 / (
        A**2 / (T - 1) + B**2 / (S - 1) + E**2 / ((T - 1) * (S - 1))
    )
    found = inference.infer(values, flat(T, S))
    assert found.freedom == pytest.approx(freedom)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_that_does_not_show_is_pooled(rng, axis):
    """Then what is left is the t test of the other side's means."""
    values = rng.normal(size=(6, 8))
    for side in (0, 1):
        values -= values.mean(axis=side, keepdims=True)
    values += 5 * rng.normal(size=(1, 8) if axis == 0 else (6, 1))
    found = inference.infer(values, flat(6, 8))
    means = values.mean(axis)
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert found.rows
    assert found.columns


def test_columns_of_one_row_each_are_parts_of_it(rng):
    values = np.zeros((5, 15))
    known = np.kron(np.eye(5), np.ones(3))
    values[known > 0] = rng.normal(size=15)
    found = inference.infer(values, known)
    means = values.sum(1) / 3
    assert found.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_missing_cells_are_not_looked_at(rng):
    values = rng.normal(size=(9, 4))
    weights = flat(9, 4)
    weights[2, 1] = weights[5, 3] = 0
    wild = np.where(weights > 0, values, 1e9)
    assert inference.infer(values, weights) == inference.infer(wild, weights)
    shown = values[weights > 0].mean()
    assert inference.infer(values, weights).mean == pytest.approx(shown)


def test_cells_that_are_all_alike_say_nothing_of_spread():
    found = inference.infer(np.full((9, 3), 0.1), flat(9, 3))
    assert np.isnan([found.low, found.high, found.p]).all()


@pytest.fixture(scope="module")
def calibration():
    folder = ROOT / "benchmarks"
    if not folder.is_dir():
        pytest.skip("installed without the checkout")
    sys.path.append(str(folder))
    return importlib.import_module("calibration")


# Targets, seeds, share of missing cells.
DESIGNS = [(9, 1, 0), (2, 5, 0), (3, 3, 0), (9, 3, 0), (5, 5, 0.2), (9, 3, 0.2)]


@pytest.mark.parametrize("design", DESIGNS)
def test_size_and_coverage(calibration, design):
    """Null worlds of each design, 1,500 draws of each; see docs/report.md."""
    draws = 1500
    # Three standard deviations of so many draws at 0.05.
    slack = 3 * math.sqrt(0.05 * 0.95 / draws)
    lines = calibration.study(*design, draws, others=False)
    lines = [line for line in lines if "skew" not in line["world"]]
    for line in lines:
        assert line["rejects"] < 0.07 + slack, line
        assert line["covers"] == pytest.approx(1 - line["rejects"], abs=2e-3)
        # A real difference is found, and more so if it is greater.
        assert line["rejects"] < line["power"][0] < line["power"][3]
    # Where neither targets nor seeds have a part, few units do not show it.
    assert min(line["rejects"] for line in lines[1:]) > 0.03 - slack
    assert np.mean([li["rejects"] for li in lines]) == pytest.approx(
        0.05, abs=0.012
    )


def board(values, name="b") -> Board:
    """PoT minus prompt-tuning has these differences [targets, seeds]."""
    targets = tuple(f"t{n}" for n in range(len(values)))
    cells = {}
    for target, row in zip(targets, values, strict=True):
        cells[Row("prompt", "prompt-tuning"), target] = dict.fromkeys(
            range(len(row)), 50.0
        )
        cells[Row("pot", "PoT", "mnli"), target] = {
            seed: 50 + value for seed, value in enumerate(row.tolist())
        }
    return Board(name, targets, cells, {}, {}, {})


def test_seeds_that_all_targets_share_are_no_independent_witnesses(rng):
    """Half of each cell's variance is its seed's, and there is no difference.

    The signs of whole targets, flipped, reject 48 in 100 of these.
    """
    found = []
    for _ in range(200):
        values = rng.normal(size=(1, 3)) + rng.normal(size=(9, 3))
        (one,) = compare([board(values)])
        found.append(one)
    assert sum(one.p <= 0.05 for one in found) <= 0.05 * 200 + 12
    covered = sum(one.low <= 0 <= one.high for one in found)
    assert covered >= 0.95 * 200 - 12
    assert {one.holds_for for one in found} == {"other targets and seeds"}
    assert {one.caution for one in found} == {"only 3 seeds"}


def test_a_backbone_again_is_no_more_evidence(rng):
    """Its cells are of the same targets and seeds, by name."""
    values = rng.normal(size=(6, 5)) + 1
    one, again, both = compare([board(values), board(values, "c")])
    assert both.backbone == ""
    assert both.pairs == 2 * one.pairs
    assert (one.low, one.high, one.p) == pytest.approx(
        (both.low, both.high, both.p)
    )
    assert again.low == one.low


@pytest.mark.parametrize(
    ("T", "S", "holds_for", "caution"),
    [
        (9, 5, "other targets and seeds", ""),
        (9, 3, "other targets and seeds", "only 3 seeds"),
        (3, 3, "other targets and seeds", "only 3 targets and 3 seeds"),
        (9, 1, "other targets, these seeds", "only 1 seed"),
        (1, 5, "other seeds, these targets", "only 1 target"),
        (2, 2, "nothing else", "2 targets, 2 seeds: no interval"),
    ],
)
def test_what_is_few_is_said(rng, T, S, holds_for, caution):
    (one,) = compare([board(rng.normal(size=(T, S)))])
    assert (one.holds_for, one.caution) == (holds_for, caution)
    assert math.isnan(one.p) == (holds_for == "nothing else")
