"""Combinations against the published figures, and their promises."""

import csv
import math
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from panda_jax import Scores, UserError, experiments
from panda_jax.transfer import combine

NAN = math.nan
PUBLISHED = pathlib.Path(experiments.__file__).parent / "published"
# Few values, so that there are ties.
MATRICES = hnp.arrays(
    np.float64, (3, 5, 4), elements=st.integers(-3, 3).map(float)
)


def scores_of(values: dict[str, np.ndarray]) -> Scores:
    M, N = next(iter(values.values())).shape
    names = [f"s{m}" for m in range(M)], [f"t{n}" for n in range(N)]
    return Scores(tuple(names[0]), tuple(names[1]), values)


def columns(*parts: list[float]) -> np.ndarray:
    """[M, N] from N columns."""
    return np.array(parts).T


# Eight sources on three targets: made-up results, and two metrics.
RESULTS = columns(
    [50.0, 60, 70, 80, 90, 60, 55, 41],
    [50, 40, 30, 20, 10, 35, 35, 90],
    [1, 2, 3, 4, 4, 3, 2, 1],
)


def published(backbone: str) -> tuple[Scores, np.ndarray]:
    """The paper's scores, and results after the first epoch [M, N]."""

    def cells(name: str) -> list[dict[str, str]]:
        with open(PUBLISHED / name, newline="") as file:
            return [
                r for r in csv.DictReader(file) if r["backbone"] == backbone
            ]

    truth = {
        (row["source"], row["target"]): float(row["score"])
        for row in cells("truth.csv")
    }
    sources, targets = (
        tuple(dict.fromkeys(names)) for names in zip(*truth, strict=True)
    )
    scores: dict[str, np.ndarray] = {}
    for row in cells("scores.csv"):
        if row["source"] in sources and row["target"] in targets:
            matrix = scores.setdefault(
                row["metric"], np.full((len(sources), len(targets)), NAN)
            )
            m, n = sources.index(row["source"]), targets.index(row["target"])
            matrix[m, n] = float(row["score"])
    results = np.array([[truth[s, t] for t in targets] for s in sources])
    return Scores(sources, targets, scores), results


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("panda", 0.300),
        ("prior", 0.256),
        ("e_avg+on+panda", 0.359),
        ("e_avg+on+panda+1.5*prior", 0.399),
    ],
)
def test_agreement_with_the_published_results(expression, expected):
    """Mean Spearman over 5 backbones and 9 targets."""
    agreement = []
    for size in ("large", "base", "medium", "small", "tiny"):
        scores, truth = published(f"bert-{size}")
        assert truth.shape == (21, 9)
        value = combine.combined(scores, truth, expression)
        agreement += [
            stats.spearmanr(value[:, n], truth[:, n]).statistic
            for n in range(9)
        ]
    assert np.nanmean(agreement) == pytest.approx(expected, abs=5e-4)


def test_sums_of_ranks_share_ties():
    scores = scores_of(
        {
            "a": columns([0.1, 0.3, 0.2, 0.3]),
            "b": columns([10.0, 30.0, 40.0, 20.0]),
        }
    )
    np.testing.assert_array_equal(
        combine.combined(scores, None, "a+b"),
        columns([1 + 1, 3.5 + 3, 2 + 4, 3.5 + 2]),
    )
    np.testing.assert_array_equal(
        combine.combined(scores, None, "2*b+0.5*a"),
        columns([2 + 0.5, 6 + 1.75, 8 + 1, 4 + 1.75]),
    )


def test_sums_of_z_scores(rng):
    a, b = rng.normal(size=(2, 6, 3)) * [[[2.0]], [[30.0]]]
    scores = scores_of({"a": a, "b": b, "same": np.full((6, 3), 0.1)})
    expected = stats.zscore(a) + 3 * stats.zscore(b)
    ours = combine.combined(scores, None, "z:a+3*b+7*same")
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    same = combine.combined(scores, None, "z:same")
    np.testing.assert_array_equal(same, 0)


def test_a_prior_is_a_term_like_the_metrics(rng):
    scores = scores_of({"a": rng.normal(size=(6, 3))})
    prior = combine.source_prior(RESULTS[:6])
    np.testing.assert_allclose(
        combine.combined(scores, RESULTS[:6], "z:a+2*prior"),
        stats.zscore(scores.values["a"]) + 2 * stats.zscore(prior),
        atol=1e-12,
    )


@hypothesis.given(MATRICES, st.sampled_from(["exp", "cube", "shift"]))
@hypothesis.settings(max_examples=40, deadline=None)
def test_increasing_maps_leave_sums_of_ranks_alone(parts, name):
    grow = {
        "exp": np.exp,
        "cube": lambda x: x**3,
        "shift": lambda x: 7 * x - 100,
    }[name]
    a, b, c = parts
    plain = scores_of({"a": a, "b": b, "c": c})
    grown = scores_of({"a": grow(a), "b": b, "c": c})
    np.testing.assert_array_equal(
        combine.combined(plain, None, "a+b+c"),
        combine.combined(grown, None, "a+b+c"),
    )
    shifted = scores_of({"a": 7 * a - 100, "b": b, "c": c})
    np.testing.assert_allclose(
        combine.combined(plain, None, "z:a+b+c"),
        combine.combined(shifted, None, "z:a+b+c"),
        atol=1e-9,
    )


@hypothesis.given(MATRICES, st.permutations(range(5)))
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_order_of_sources_and_targets_does_not_matter(parts, order):
    a, b, truth = parts
    value = combine.combined(scores_of({"a": a, "b": b}), truth, "a+b+2*prior")
    shuffled = combine.combined(
        scores_of({"a": a[order][:, ::-1], "b": b[order][:, ::-1]}),
        truth[order][:, ::-1],
        "a+b+2*prior",
    )
    np.testing.assert_array_equal(value[order][:, ::-1], shuffled)


@pytest.mark.parametrize("prefix", ["", "z:"])
def test_a_source_without_a_score_is_left_out_of_every_term(prefix):
    a = columns([3.0, 1.0, 2.0, 4.0], [NAN] * 4)
    b = columns([1.0, NAN, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    value = combine.combined(
        scores_of({"a": a, "b": b}), None, f"{prefix}a + b"
    )
    kept = [0, 2, 3]
    alone = combine.combined(
        scores_of({"a": a[kept, :1], "b": b[kept, :1]}), None, f"{prefix}a+b"
    )
    np.testing.assert_array_equal(value[kept, 0], alone[:, 0])
    assert np.isnan(value[1, 0])
    assert np.isnan(value[:, 1]).all()


def test_prior_sums_the_ranks_on_other_targets():
    ranks = stats.rankdata(RESULTS, axis=0)
    expected = columns(
        (ranks[:, 1] + ranks[:, 2]).tolist(),
        (ranks[:, 0] + ranks[:, 2]).tolist(),
        (ranks[:, 0] + ranks[:, 1]).tolist(),
    )
    np.testing.assert_array_equal(combine.source_prior(RESULTS), expected)


@hypothesis.given(
    hnp.arrays(np.float64, (6, 4), elements=st.floats(-1e6, 1e6)),
    hnp.arrays(np.float64, (6,), elements=st.floats(-1e6, 1e6) | st.just(NAN)),
    st.integers(0, 3),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_prior_never_reads_the_targets_own_results(truth, other, n):
    before = combine.source_prior(truth)[:, n]
    truth = truth.copy()
    truth[:, n] = other
    np.testing.assert_array_equal(combine.source_prior(truth)[:, n], before)


def test_prior_takes_a_missing_result_for_the_middle():
    truth = columns([1.0, 2.0, NAN, 4.0], [NAN, NAN, NAN, 5.0], [0.0] * 4)
    truth[2] = [NAN, NAN, 9.0]
    prior = combine.source_prior(truth)
    # Ranks 1, 2, (2), 3; (1), (1), (1), 1; 2, 2, 4, 2.
    np.testing.assert_array_equal(prior[:, 0], [3.0, 3.0, 5.0, 3.0])
    np.testing.assert_array_equal(prior[[0, 1, 3], 2], [2.0, 3.0, 4.0])
    assert np.isnan(prior[2, 2])


def test_prior_can_leave_out_results_of_a_source_on_itself():
    own = np.zeros_like(RESULTS, dtype=bool)
    own[3, 1] = True
    missing = np.where(own, NAN, RESULTS)
    np.testing.assert_array_equal(
        combine.source_prior(RESULTS, self_pairs=own),
        combine.source_prior(missing),
    )


def test_self_pairs_can_be_left_out():
    values = {"a": columns([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])}
    scores = Scores(("x", "y", "z"), ("y", "q"), values)
    value = combine.combined(scores, None, "a", include_self=False)
    np.testing.assert_array_equal(value, columns([1, NAN, 2], [1, 2, 3]))
    truth = columns([5.0, 9.0, 6.0], [0.0, 0.0, 0.0])
    prior = combine.combined(scores, truth, "prior")
    np.testing.assert_array_equal(prior[:, 1], [1.0, 3.0, 2.0])
    prior = combine.combined(scores, truth, "prior", include_self=False)
    # y has no other result.
    np.testing.assert_array_equal(prior[:, 1], [1.0, NAN, 2.0])


def test_truth_is_matched_by_name_and_may_have_more_targets(rng):
    a = rng.normal(size=(8, 3))
    truth = scores_of({"first_epoch": RESULTS})
    shuffled = Scores(
        truth.sources[::-1],
        (*truth.targets[::-1], "more"),
        {
            "first_epoch": np.concatenate(
                [RESULTS[::-1, ::-1], np.zeros((8, 1))], axis=1
            )
        },
    )
    expected = combine.combined(scores_of({"a": a}), RESULTS, "a+1.5*prior")
    for table in (truth, shuffled):
        ours = combine.combined(scores_of({"a": a}), table, "a+1.5*prior")
        np.testing.assert_array_equal(ours, expected)
    few = Scores(("s0", "s9"), ("u",), {"r": np.array([[1.0], [2.0]])})
    ours = combine.combined(scores_of({"a": a}), few, "a+prior")
    assert (ours[0] == 2).all()
    assert np.isnan(ours[1:]).all()


def test_parse_reads_weights_and_prefix():
    assert combine.parse(" z: e_avg + 0.5*on+1e-1 * prior") == (
        {"e_avg": 1.0, "on": 0.5, "prior": 0.1},
        True,
    )
    assert combine.parse("panda") == ({"panda": 1.0}, False)


@pytest.mark.parametrize(
    "expression",
    ["", "a+", "+a", "a++b", "2*", "x*a", "-1*a", "0*a", "inf*a", "nan*a"],
)
def test_malformed_expressions_say_what_was_expected(expression):
    with pytest.raises(UserError, match=r"expected .*1\.5\*prior"):
        combine.parse(expression)


def test_other_mistakes_name_themselves():
    scores = scores_of({"e_avg": RESULTS})
    with pytest.raises(UserError, match="twice"):
        combine.combined(scores, None, "e_avg+2*e_avg")
    with pytest.raises(UserError, match="'e_agv'. Did you mean 'e_avg'"):
        combine.combined(scores, None, "e_agv")
    with pytest.raises(UserError, match="Did you mean 'prior'"):
        combine.combined(scores, None, "priro")
    with pytest.raises(UserError, match="Unknown metric 'on'"):
        combine.combined(scores, None, "z:e_avg+on")
    with pytest.raises(UserError, match="give the truth"):
        combine.combined(scores, None, "prior")
    with pytest.raises(UserError, match=r"shape \(3, 8\), expected \(8, 3\)"):
        combine.combined(scores, RESULTS.T, "prior")
