"""Statistics against SciPy, scikit-learn and brute force; whole reports."""

import dataclasses
import itertools
import json
import math

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st
from scipy import stats

from panda_jax import errors
from panda_jax.experiments import inference
from panda_jax.experiments.ranking import data, statistics
from panda_jax.experiments.ranking.ranking import evaluate_ranking
from panda_jax.transfer.scores import Scores

KS = (1, 2, 3)
FAST = {"resamples": 50, "permutations": 50}

# Few distinct values, so that ties are common.
columns = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        *(st.lists(st.integers(0, 4), min_size=n, max_size=n) for _ in range(3))
    )
)
distinct = st.integers(3, 9).flatmap(
    lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n)))
)


def of(score, truth, counts=None) -> dict[str, float]:
    """Every statistic of one column."""
    counts = [1] * len(score) if counts is None else counts
    sample = statistics.Sample(
        np.array(score, float), np.array(truth, float), np.array([counts])
    )
    return {
        name: float(statistic(sample)[0])
        for name, statistic in statistics.statistics(KS).items()
    }


def references(score, truth, spread) -> dict[str, float]:
    """The same by others' code, and regret over all orders of what ties."""
    score, truth = np.array(score, float), np.array(truth, float)
    found = {
        "spearman": math.nan,
        "tau": math.nan,
        "gain@1": truth[score == score.max()].mean() - truth.mean(),
    }
    if np.ptp(score) > 0 and np.ptp(truth) > 0:
        found["spearman"] = stats.spearmanr(score, truth)[0]
        found["tau"] = stats.weightedtau(score, truth)[0]
    low, high = spread
    gains = (truth - low) / ((high - low) or 1)
    orders = [
        sorted(order, key=lambda i: -score[i])
        for order in itertools.permutations(range(len(score)))
    ]
    for k in KS:
        found[f"ndcg@{k}"] = math.nan
        if gains.max() > 0 and len(score) > 1:
            found[f"ndcg@{k}"] = sklearn.metrics.ndcg_score(
                [gains], [score], k=k
            )
        found[f"regret@{k}"] = truth.max() - np.mean(
            [truth[order[:k]].max() for order in orders]
        )
    return found


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(columns)
def test_statistics_are_those_of_scipy_and_scikit_learn(drawn):
    """Counts too: a source held twice is two sources."""
    score, truth, counts = drawn
    spread = (min(truth), max(truth))
    wanted = references(score, truth, spread)
    for name, value in of(score, truth).items():
        assert value == pytest.approx(wanted[name], abs=1e-12, nan_ok=True)
    if not 2 <= sum(counts) <= 7:
        return
    held = [np.repeat(part, counts) for part in (score, truth)]
    wanted = references(*held, spread)
    for name, value in of(score, truth, counts).items():
        assert value == pytest.approx(wanted[name], abs=1e-12, nan_ok=True)


@hypothesis.settings(deadline=None)
@hypothesis.given(columns)
def test_bounds_and_invariances(drawn):
    score, truth, _ = (np.array(part, float) for part in drawn)
    found = of(score, truth)
    for name, value in found.items():
        low, high = {"s": (-1, 1), "t": (-1, 1), "n": (0, 1)}.get(
            name[0], (-math.inf, math.inf)
        )
        if name.startswith("regret"):
            low = 0
        assert math.isnan(value) or low - 1e-12 <= value <= high + 1e-12
    monotone = of(np.exp(score) * 3 - 7, truth)
    assert monotone == pytest.approx(found, abs=1e-12, nan_ok=True)
    order = np.arange(len(score))[::-1]
    turned = of(score[order], truth[order])
    assert turned == pytest.approx(found, abs=1e-12, nan_ok=True)
    unit = of(score, truth * 100 + 5)
    for name, value in found.items():
        scale = 100 if name[0] in "rg" else 1
        assert unit[name] == pytest.approx(scale * value, nan_ok=True)


@hypothesis.settings(deadline=None)
@hypothesis.given(distinct)
def test_the_truth_is_its_own_best_judge(drawn):
    score, truth = drawn
    best = of(truth, truth)
    assert best["spearman"] == best["tau"] == pytest.approx(1)
    for name, value in of(score, truth).items():
        better = best[name] <= value if "regret" in name else None
        assert (best[name] >= value - 1e-12) if better is None else better
    worst = of([-t for t in truth], truth)
    assert worst["spearman"] == pytest.approx(-1)
    assert worst["regret@1"] == len(truth) - 1


def test_many_resamplings_are_each_alone(rng):
    score, truth = rng.integers(0, 5, size=(2, 12)).astype(float)
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=20)
    sample = statistics.Sample(score, truth, counts)
    for name, statistic in statistics.statistics((3,)).items():
        alone = [
            statistic(statistics.Sample(score, truth, counts[r : r + 1]))[0]
            for r in range(20)
        ]
        np.testing.assert_allclose(statistic(sample), alone, err_msg=name)


def test_a_resampling_that_holds_nothing_is_undefined():
    assert all(map(math.isnan, of([1, 2, 3], [1, 2, 3], [0, 0, 0]).values()))


def table(rng, M=8, N=4, noise=1.0) -> tuple[Scores, data.Truth]:
    """Two metrics, one of which knows the truth but for noise."""
    sources = tuple(f"s{m}" for m in range(M))
    targets = tuple(f"t{n}" for n in range(N))
    results = rng.normal(size=(M, N))
    values = {
        "good": results + noise * rng.normal(size=(M, N)),
        "blind": rng.normal(size=(M, N)),
    }
    return (
        Scores(sources, targets, values),
        data.Truth(sources, targets, results[None]),
    )


def test_averages_are_means_of_targets(rng):
    scores, results = table(rng)
    report = evaluate_ranking(scores, results, **FAST)
    wanted = [
        stats.spearmanr(column, known)[0]
        for column, known in zip(
            scores.values["good"].T, results.values.T, strict=True
        )
    ]
    for target, value in zip(scores.targets, wanted, strict=True):
        assert report.get("good", target=target).value == pytest.approx(value)
    average = report.get("good")
    assert average.value == pytest.approx(np.mean(wanted))
    assert average.cells == 4
    assert average.low < average.value < average.high
    with pytest.raises(errors.UserError, match="Metrics: good, blind"):
        report.get("goood")


def test_each_backbone_counts_once(rng):
    """However many targets it has."""
    groups = {"a": table(rng, N=1), "b": table(rng, N=5)}
    report = evaluate_ranking(
        {name: part[0] for name, part in groups.items()},
        {name: part[1] for name, part in groups.items()},
        **FAST,
    )
    own = [report.get("good", backbone=name).value for name in groups]
    assert report.get("good").value == pytest.approx(np.mean(own))
    by_cell = [
        report.get("good", backbone=name, target="t0").value for name in groups
    ]
    assert report.get("good", target="t0").value == pytest.approx(
        np.mean(by_cell)
    )
    assert report.backbones == ("a", "b")


def test_the_order_of_names_changes_nothing(rng):
    scores, results = table(rng)
    turned = Scores(
        scores.sources[::-1],
        scores.targets[::-1],
        {m: v[::-1, ::-1] for m, v in scores.values.items()},
    )
    one = evaluate_ranking(scores, results, **FAST)
    two = evaluate_ranking(turned, results, **FAST)
    assert one.table().splitlines() == two.table().splitlines()


def test_equal_seeds_equal_reports(rng):
    scores, results = table(rng)
    tables = [
        evaluate_ranking(scores, results, **FAST, seed=seed).table()
        for seed in (1, 1, 2)
    ]
    assert tables[0] == tables[1] != tables[2]


def test_p_tells_a_metric_from_chance(rng):
    scores, results = table(rng, M=12, N=6, noise=0.5)
    report = evaluate_ranking(scores, results, permutations=499, resamples=0)
    assert report.get("good").p == pytest.approx(1 / 500)
    assert report.get("blind").p > 0.01
    assert math.isnan(report.get("good", "tau").p)
    # Without resamples there is no interval of what needs them.
    assert math.isnan(report.get("good", "ndcg@3").low)
    (pair,) = [c for c in report.comparisons if c.statistic == "spearman"]
    assert pair.difference > 0
    assert pair.low > 0
    assert pair.p < 0.05
    assert pair.holm == pair.p
    others = [c for c in report.comparisons if c.statistic == "ndcg@3"]
    assert math.isnan(others[0].p)


def test_shuffles_are_one_for_all_targets(rng):
    """Six copies of a target are no more evidence than the target alone."""
    scores, results = table(rng, M=10, N=1, noise=1.5)
    names = tuple(f"t{n}" for n in range(6))
    many = Scores(
        scores.sources,
        names,
        {m: np.repeat(v, 6, axis=1) for m, v in scores.values.items()},
    )
    known = data.Truth(scores.sources, names, results.seeds.repeat(6, axis=2))
    alone = evaluate_ranking(scores, results, **FAST)
    copies = evaluate_ranking(many, known, **FAST)
    for metric in alone.metrics:
        one, other = alone.get(metric), copies.get(metric)
        assert one.p == other.p
        assert one.value == pytest.approx(other.value)


def test_chance_is_what_shuffles_average_to(rng):
    scores, results = table(rng, M=5, N=2)
    report = evaluate_ranking(scores, results, **FAST)
    for statistic in ("ndcg@3", "regret@3", "gain@1", "spearman"):
        means = []
        for column in results.values.T:
            found = [
                of(order, column)[statistic]
                for order in itertools.permutations(range(5))
            ]
            means.append(np.mean(found))
        assert report.get("[chance]", statistic).value == pytest.approx(
            np.mean(means), abs=1e-12
        )


def test_bootstrap_interval_against_resampling_by_hand(rng):
    """One target: resamplings of its sources, each by scikit-learn."""
    x, y = rng.normal(size=(2, 15))
    y += x
    names = tuple(f"s{m:02d}" for m in range(15))
    report = evaluate_ranking(
        Scores(names, ("t",), {"m": x[:, None]}),
        data.Truth(names, ("t",), y[None, :, None]),
        resamples=2000,
        permutations=0,
    )
    found = []
    gains = (y - y.min()) / np.ptp(y)
    for _ in range(1000):
        drawn = rng.integers(0, 15, 15)
        found.append(
            sklearn.metrics.ndcg_score([gains[drawn]], [x[drawn]], k=3)
        )
    low, high = np.quantile(found, [0.025, 0.975])
    estimate = report.get("m", "ndcg@3", target="t")
    assert estimate.low == pytest.approx(low, abs=0.08)
    assert estimate.high == pytest.approx(high, abs=0.04)


def test_one_targets_interval_is_the_jackknifes(rng):
    """By hand: the t interval of Tukey's pseudo-values, about the estimate."""
    x, y = rng.normal(size=(2, 15))
    y += x
    names = tuple(f"s{m:02d}" for m in range(15))
    report = evaluate_ranking(
        Scores(names, ("t",), {"m": x[:, None]}),
        data.Truth(names, ("t",), y[None, :, None]),
        **FAST,
    )
    whole = stats.spearmanr(x, y)[0]
    parts = [
        15 * whole - 14 * stats.spearmanr(np.delete(x, i), np.delete(y, i))[0]
        for i in range(15)
    ]
    half = stats.t.ppf(0.975, 14) * np.std(parts, ddof=1) / math.sqrt(15)
    estimate = report.get("m", target="t")
    assert estimate.low == pytest.approx(whole - half)
    assert estimate.high == pytest.approx(min(1.0, whole + half))
    assert estimate.caution == "only 1 target, and for these targets alone"
    average = report.get("m")
    assert (average.low, average.high) == (estimate.low, estimate.high)


def test_targets_that_differ_widen_the_averages_interval(rng):
    """Cells that agree within a target and differ between them."""
    names = tuple(f"s{m:02d}" for m in range(40))
    x = np.arange(40.0)[:, None].repeat(4, axis=1)
    y = x * [1, -1, 1, -1] + 1e-3 * rng.normal(size=x.shape)
    report = evaluate_ranking(
        Scores(names, tuple("abcd"), {"m": x}),
        data.Truth(names, tuple("abcd"), y[None]),
        **FAST,
    )
    average = report.get("m")
    assert average.value == pytest.approx(0, abs=0.01)
    assert average.low < -0.9
    assert average.high > 0.9
    assert average.caution == "only 4 targets"
    # Where no source disagrees nothing says how much another would.
    alone = report.get("m", target="a")
    assert alone.value == pytest.approx(1.0)
    assert math.isnan(alone.low)
    noisy = evaluate_ranking(
        Scores(names, tuple("abcd"), {"m": x}),
        data.Truth(names, tuple("abcd"), (x + rng.normal(size=x.shape))[None]),
        **FAST,
    )
    assert noisy.get("m", target="a").low > 0.9
    lines = report.table().splitlines()
    assert any("(!)" in line for line in lines if line.startswith("m "))
    assert "(!): only 4 targets." in lines


def test_a_target_is_drawn_for_all_of_its_cells(rng):
    """By its name: a backbone again is no second draw, and no evidence."""
    made = [cell(f"t{n % 3}", f"b{n // 3}") for n in range(9)]
    drawn = statistics.draw(made, sources=3, resamples=200, seed=0).targets
    assert drawn.shape == (201, 9)
    for copy in (drawn[:, 3:6], drawn[:, 6:]):
        np.testing.assert_array_equal(copy, drawn[:, :3])
    assert (drawn[1:, :3].sum(axis=1) == 3).all()
    assert drawn[1:, :3].var(axis=0).min() > 0
    scores, results = table(rng, M=8, N=5)
    alone = evaluate_ranking({"a": scores}, {"a": results}, **FAST)
    names = ("a", "b", "c")
    many = evaluate_ranking(
        dict.fromkeys(names, scores), dict.fromkeys(names, results), **FAST
    )
    for statistic in ("spearman", "tau", "ndcg@3", "regret@3", "gain@1"):
        one, other = (r.get("good", statistic) for r in (alone, many))
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
    one, other = (r.comparisons[0] for r in (alone, many))
    assert (one.p, one.low) == pytest.approx((other.p, other.low))


def simulated(rng, M, N) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth; sources, targets and pairs all have a part."""
    shared = rng.normal(size=(M, 1))
    score = 0.5 * shared + rng.normal(size=(M, N))
    known = (0.4 + 0.5 * rng.normal(size=N)) * score
    known += 0.5 * shared * rng.normal(size=N)
    return score, known + 1.2 * rng.normal(size=(M, N))


def test_intervals_cover_and_p_keeps_its_level(rng):
    """What other sources and targets would give, 100 times."""
    M, N, tries = 12, 7, 100

    def mean(score, known) -> float:
        ranks = [stats.rankdata(part, axis=0) for part in (score, known)]
        x, y = (part - part.mean(0) for part in ranks)
        return ((x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))).mean()

    def noisy(score):
        shared = rng.normal(size=(len(score), 1))
        return score + shared + rng.normal(size=score.shape)

    made = (simulated(rng, M, 300) for _ in range(60))
    true = np.mean([mean(noisy(score), known) for score, known in made])
    sources = tuple(f"s{m:02d}" for m in range(M))
    targets = tuple(f"t{n}" for n in range(N))
    found = []
    for seed in range(tries):
        score, known = simulated(rng, M, N)
        # Two metrics that are as good: the same but for noise of sources.
        values = {
            "blind": score[rng.permutation(M)],
            "one": noisy(score),
            "other": noisy(score),
        }
        report = evaluate_ranking(
            Scores(sources, targets, values),
            data.Truth(sources, targets, known[None]),
            ks=(3,),
            resamples=0,
            permutations=99,
            seed=seed,
        )
        whole = report.get("one")
        (apart,) = [
            c
            for c in report.comparisons
            if (c.first, c.second, c.statistic) == ("one", "other", "spearman")
        ]
        found.append(
            (
                whole.low <= true <= whole.high,
                report.get("blind").p <= 0.1,
                apart.p <= 0.05,
                apart.low <= 0 <= apart.high,
            )
        )
    covered, small, rejected, held = np.mean(found, axis=0)
    # Three standard deviations of so many tries, about what 0.95 may be off.
    slack = 3 * math.sqrt(0.05 * 0.95 / tries)
    assert covered == pytest.approx(0.95, abs=0.02 + slack)
    assert small == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / tries))
    assert rejected == pytest.approx(0.05, abs=0.02 + slack)
    assert held == pytest.approx(1 - rejected)


def test_holm():
    assert inference.holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx(
        [0.03, 0.06, math.nan, 0.06], nan_ok=True
    )
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0]


def cell(target="t", backbone="", **values) -> data.Cell:
    known = np.arange(3.0)
    made = data.Cell(
        backbone, target, np.arange(3), known, known[None], {}, None
    )
    return dataclasses.replace(made, **values)


def test_combinations_read_the_other_targets_only(rng):
    scores, results = table(rng, M=8, N=3)
    expression = "good+blind+1.5*prior"
    report = evaluate_ranking(scores, results, combine=(expression,), **FAST)
    assert report.metrics == ("good", "blind", expression)
    ranks = [stats.rankdata(v, axis=0) for v in scores.values.values()]
    known = stats.rankdata(results.values, axis=0)
    for n, target in enumerate(results.targets):
        others = np.delete(known, n, axis=1).sum(1)
        total = ranks[0][:, n] + ranks[1][:, n] + 1.5 * stats.rankdata(others)
        wanted = stats.spearmanr(total, results.values[:, n])[0]
        found = report.get(expression, target=target).value
        assert found == pytest.approx(wanted)
    with pytest.raises(errors.UserError, match="Did you mean 'good'"):
        evaluate_ranking(scores, results, combine=("goood+blind",), **FAST)


def test_self_pairs(rng):
    names = ("a", "b", "c", "d", "e")
    results = rng.normal(size=(5, 2))
    results[[0, 1], [0, 1]] = 9.0
    values = rng.normal(size=(5, 2))
    values[[0, 1], [0, 1]] = 9.0
    scores = Scores(names, names[:2], {"m": values})
    known = data.Truth(names, names[:2], results[None])
    both = [
        evaluate_ranking(scores, known, **FAST, include_self=choice)
        for choice in (True, False)
    ]
    assert both[0].other_self["m"] == pytest.approx(both[1].get("m").value)
    assert both[1].other_self["m"] == pytest.approx(both[0].get("m").value)
    assert both[0].get("m").value > both[1].get("m").value
    own = [np.delete(part[:, 0], 0) for part in (values, results)]
    assert both[1].get("m", target="a").value == pytest.approx(
        stats.spearmanr(*own)[0]
    )
    assert both[0].about["self_pairs"] == 2
    assert both[1].about["self_pairs"] == 0
    assert both[1].left_out == []
    assert "2 self-pairs included" in both[0].table()
    assert "self-pairs left out" in both[1].table()


def test_seeds_give_a_ceiling(rng):
    """Reliability of simulated truths: K / (K + noise^2), by their making."""
    M, N, K = 800, 6, 4
    signal = rng.normal(size=(M, N))
    seeds = signal + 2.0 * rng.normal(size=(K, M, N))
    sources, targets = (
        tuple(f"{letter}{i}" for i in range(count))
        for letter, count in (("s", M), ("t", N))
    )
    report = evaluate_ranking(
        Scores(sources, targets, {"signal": signal}),
        data.Truth(sources, targets, seeds),
        resamples=0,
        permutations=0,
    )
    found = report.reliability
    assert found is not None
    assert found.seeds == 4
    assert found.reliability == pytest.approx(K / (K + 4), abs=0.05)
    # A predictor of the noise-free truth comes that high.
    assert report.get("signal").value == pytest.approx(found.ceiling, abs=0.05)
    assert "The truth has 4 seeds" in report.table()


def test_odd_numbers_of_seeds(rng):
    signal = rng.normal(size=(3000, 1))
    seeds = signal + rng.normal(size=(3, 3000, 1))
    made = [
        cell(
            sources=np.arange(3000),
            truth=seeds.mean(0)[:, 0],
            seeds=seeds[..., 0],
        )
    ]
    found = statistics.split_half(made)
    assert found is not None
    assert found.reliability == pytest.approx(3 / 4, abs=0.03)
    assert statistics.split_half([cell()]) is None


def test_a_ceiling_is_judged_like_a_metric(rng):
    scores, results = table(rng)
    noisy = results.seeds + rng.normal(size=results.seeds.shape)
    other = dataclasses.replace(results, seeds=noisy)
    report = evaluate_ranking(scores, results, ceiling=other, **FAST)
    wanted = [
        stats.spearmanr(a, b)[0]
        for a, b in zip(noisy[0].T, results.values.T, strict=True)
    ]
    assert report.get("[ceiling]").value == pytest.approx(np.mean(wanted))
    assert "[ceiling]" not in report.metrics
    assert not any(
        "[ceiling]" in (c.first, c.second) for c in report.comparisons
    )


def test_constant_scores_are_named_and_left_out_of_the_mean(rng):
    scores, results = table(rng)
    scores.values["blind"][:, 1] = 0.3
    report = evaluate_ranking(scores, results, **FAST)
    assert math.isnan(report.get("blind", target="t1").value)
    average = report.get("blind")
    assert average.cells == 3
    assert average.value == pytest.approx(
        np.mean([report.get("blind", target=f"t{n}").value for n in (0, 2, 3)])
    )
    # What is defined for ties stays: the mean source.
    assert report.get("blind", "gain@1", target="t1").value == pytest.approx(0)
    (entry,) = report.left_out
    assert entry.names == ("t1",)
    assert "scores of blind are all the same" in entry.reason
    shown = report.table()
    assert "3/4" in shown
    assert "4/4" in shown
    assert "nan" in shown


def test_what_is_missing_is_named(rng):
    scores, results = table(rng, M=6, N=5)
    scores.values["good"][2, 0] = math.nan
    scores.values["good"][:, 1] = math.nan
    known = results.seeds.copy()
    known[0, 4, 0] = math.nan
    known[0, 2:, 2] = math.nan
    known[0, :, 3] = 0.5
    names = (*results.sources[:5], "else")
    results = data.Truth(names, (*results.targets[:4], "only"), known)
    report = evaluate_ranking(scores, results, **FAST)
    found = {entry.reason: entry.names for entry in report.left_out}
    assert found == {
        "sources with scores and no truth": ("s5",),
        "sources with truth and no scores": ("else",),
        "targets with scores and no truth": ("t4",),
        "targets with truth and no scores": ("only",),
        "targets without a score of good": ("t1",),
        "pairs without a score of good": ("s2>t0",),
        "pairs with scores and no truth": ("s2>t2", "s3>t2", "s4>t0", "s4>t2"),
        "targets with fewer than 3 sources": ("t2",),
        "targets on which all sources did the same": ("t3",),
    }
    assert report.targets == ("t0", "t1")
    assert report.get("good").cells == 1
    assert report.get("blind").cells == 2
    # Both metrics are judged on the same pairs: s0, s1, s3.
    wanted = stats.spearmanr(
        scores.values["blind"][[0, 1, 3], 0], known[0, [0, 1, 3], 0]
    )[0]
    assert report.get("blind", target="t0").value == pytest.approx(wanted)
    shown = report.table()
    for reason, names in found.items():
        assert f"{len(names)} {reason}: {', '.join(names)}" in shown


def test_a_target_without_any_score_is_no_cell(rng):
    scores, results = table(rng)
    for values in scores.values.values():
        values[:, 2] = math.nan
    report = evaluate_ranking(scores, results, **FAST)
    assert report.targets == ("t0", "t1", "t3")
    assert [(entry.reason, entry.names) for entry in report.left_out] == [
        ("targets without a score of good", ("t2",)),
        ("targets without a score of blind", ("t2",)),
    ]
    assert report.get("[chance]").cells == report.get("good").cells == 3


def test_nothing_drawn(rng):
    scores, results = table(rng)
    report = evaluate_ranking(scores, results, resamples=0, permutations=0)
    assert "nan" not in report.table()
    assert math.isnan(report.get("good").p)
    for estimate in report.estimates:
        needs = estimate.statistic not in ("spearman", "tau")
        needs |= estimate.metric == "[chance]"
        assert math.isnan(estimate.low) == needs


def test_infinite_scores_count_as_none(rng):
    scores, results = table(rng)
    scores.values["good"][0, 0] = -math.inf
    report = evaluate_ranking(scores, results, **FAST)
    assert [entry.names for entry in report.left_out] == [("s0>t0",)]


def write(path, text):
    path.write_text(text)
    return path


SCORES = "source,target,metric,score\n" + "".join(
    f"s{m},t{n},on,{(m * (n + 2)) % 5}\n" for m in range(5) for n in range(2)
)
TRUTH = "source,target,score,note\n" + "".join(
    f"s{m},t{n},{m + n},x\n" for m in range(5) for n in range(2)
)


def with_column(text, name, values):
    head, *rows = text.splitlines()
    made = [f"{value},{row}" for value in values for row in rows]
    return "\n".join([f"{name},{head}", *made]) + "\n"


def test_files(tmp_path):
    scores = write(tmp_path / "scores.csv", SCORES)
    known = write(tmp_path / "truth.csv", TRUTH)
    report = evaluate_ranking(str(scores), known, **FAST)
    assert report.backbones == ("",)
    assert report.about["pairs"] == 10
    in_memory = evaluate_ranking(
        Scores.from_csv(scores), data.Truth.by_backbone(known)[""], **FAST
    )
    assert report.table() == in_memory.table()


def test_files_of_several_backbones(tmp_path):
    one = write(tmp_path / "small.csv", SCORES)
    two = write(tmp_path / "large.csv", SCORES.replace("on,1", "on,7"))
    known = write(tmp_path / "truth.csv", TRUTH)
    listed = evaluate_ranking([one, two], known, **FAST)
    assert listed.backbones == ("small", "large")
    joined = evaluate_ranking(f"{one},{two}", f"{known},{known}", **FAST)
    assert joined.table() == listed.table()
    by_column = write(
        tmp_path / "both.csv", with_column(TRUTH, "backbone", ["large", "x"])
    )
    part = evaluate_ranking([one, two], by_column, **FAST)
    assert part.backbones == ("large",)
    assert {e.names[0]: e.reason for e in part.left_out} == {
        "small": "backbones: has scores and no truth",
        "x": "backbones: has truth and no scores",
    }
    with pytest.raises(errors.UserError, match=r"3 truth files for 2 score"):
        evaluate_ranking([one, two], [known] * 3, **FAST)
    with pytest.raises(errors.UserError, match=r"backbone 'small'"):
        evaluate_ranking([one, one], known, **FAST)
    none = write(tmp_path / "y.csv", with_column(TRUTH, "backbone", ["y", "x"]))
    with pytest.raises(errors.UserError, match="No backbone has both.*'small'"):
        evaluate_ranking([one, two], none, **FAST)


def test_one_table_of_scores_is_of_the_truths_one_backbone(tmp_path):
    scores = write(tmp_path / "scores.csv", SCORES)
    known = write(tmp_path / "t.csv", with_column(TRUTH, "backbone", ["tiny"]))
    assert evaluate_ranking(scores, known, **FAST).backbones == ("tiny",)
    known = write(
        tmp_path / "t.csv", with_column(TRUTH, "backbone", ["tiny", "scores"])
    )
    assert evaluate_ranking(scores, known, **FAST).backbones == ("scores",)
    known = write(
        tmp_path / "t.csv", with_column(TRUTH, "backbone", ["tiny", "base"])
    )
    with pytest.raises(errors.UserError, match="'' has scores and no truth"):
        evaluate_ranking(scores, known, **FAST)


def test_truth_of_several_seeds_is_their_mean(tmp_path):
    rows = with_column(TRUTH, "seed", ["0", "1"]).splitlines()
    rows[1] = rows[1].replace("s0,t0,0", "s0,t0,3")
    known = data.Truth.by_backbone(
        write(tmp_path / "t.csv", "\n".join(rows[:-1]))
    )[""]
    assert known.seeds.shape == (2, 5, 2)
    assert known.values[0, 0] == 1.5
    assert known.values[4, 1] == 5  # its second seed has no result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.csv:1: got the columns \[\], expected source,target,score"),
        ("source,score\n", r"t\.csv:1: .*expected source,target,score"),
        ("source,source,target,score\n", r"t\.csv:1: .*each once"),
        ("source,target,score\n", "no results"),
        ("source,target,score\na,b,x\n", r"t\.csv:2: score is 'x'"),
        ("source,target,score\na,b,nan\n", r"t\.csv:2: score is nan.*finite"),
        ("source,target,score\na,b,inf\n", r"t\.csv:2: score is inf.*finite"),
        ("source,target,score\na,b\n", r"t\.csv:2: got 2 cells, expected 3"),
        ("source,target,score\n,b,1\n", r"t\.csv:2: .*names for source"),
        (
            "source,target,score\na,b,1\na,b,1\n",
            r"t\.csv:3: a second result of a on b; .*'seed'",
        ),
        (
            "backbone,source,target,score\n,a,b,1\n",
            r"t\.csv:2: .*names for source, target, backbone",
        ),
        ('source,target,score\na,"b,1\n', r"t\.csv:\d: "),
    ],
)
def test_bad_truth_names_file_and_line(tmp_path, text, message):
    scores = write(tmp_path / "scores.csv", SCORES)
    bad = write(tmp_path / "t.csv", text)
    with pytest.raises(errors.UserError, match=message):
        evaluate_ranking(scores, bad, **FAST)


def test_other_mistakes(tmp_path):
    scores = write(tmp_path / "scores.csv", SCORES)
    known = write(tmp_path / "truth.csv", TRUTH)
    for message, given, options in (
        (r"none\.csv' cannot be read", (scores, tmp_path / "none.csv"), {}),
        ("score file .*cannot be read", (tmp_path / "none.csv", known), {}),
        ("Got no file", ("", known), {}),
        ("ks is", (scores, known), {"ks": (0,)}),
        ("ks is", (scores, known), {"ks": ()}),
        ("resamples is -1", (scores, known), {"resamples": -1}),
        ("confidence is 95", (scores, known), {"confidence": 95}),
        ("Did you mean 'on'", (scores, known), {"metrics": ("onn",)}),
    ):
        with pytest.raises(errors.UserError, match=message):
            evaluate_ranking(*given, **{**FAST, **options})
    strange = write(tmp_path / "x.csv", TRUTH.replace("t", "u", 99))
    with pytest.raises(errors.UserError, match="columns"):
        evaluate_ranking(scores, strange, **FAST)
    strange.write_text("source,target,score\na,b,1\n")
    with pytest.raises(
        errors.UserError, match="No target has 3 sources.*no truth: t0, t1"
    ):
        evaluate_ranking(scores, strange, **FAST, combine=("on+prior",))


def test_table_is_narrow_and_complete(rng):
    scores, results = table(rng)
    values = {
        f"metric number {i}": v
        for i in range(4)
        for v in scores.values.values()
    }
    many = Scores(scores.sources, scores.targets, values)
    shown = evaluate_ranking(many, results, **FAST).table()
    assert max(map(len, shown.splitlines())) <= 100
    for word in (*values, *scores.targets, "ndcg@5", "regret@3", "gain@1"):
        assert word in shown


def test_report_files(tmp_path, rng):
    scores, results = table(rng)
    scores.values["blind"][:, 1] = 0.3
    report = evaluate_ranking(scores, results, **FAST)
    paths = report.write(tmp_path / "out")
    assert [path.name for path in paths] == [
        "ranking.txt",
        "ranking.json",
        "ranking.csv",
        "comparisons.csv",
        "scatter_good.png",
        "scatter_blind.png",
    ]
    assert paths[0].read_text() == report.table() + "\n"
    data = json.loads(paths[1].read_text())
    first = data["estimates"][0]
    assert (first["metric"], first["statistic"]) == ("good", "spearman")
    assert first["value"] == report.get("good").value
    assert data["left_out"][0]["names"] == ["t1"]
    assert data["estimates"][0]["backbone"] == ""
    lines = paths[2].read_text().splitlines()
    assert len(lines) == 1 + len(report.estimates)
    points = (
        (tmp_path / "out" / "scatter_good_data.csv").read_text().splitlines()
    )
    assert points[0] == "source,target,score,gain"
    assert len(points) == 1 + 8 * 4
    with pytest.raises(errors.UserError, match="Unknown metric"):
        report.scatter(tmp_path / "x.png", "gut")
