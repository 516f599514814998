"""Metrics that read labels, against float64 references written otherwise."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, stats
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import Ridge

from panda_jax import UserError
from panda_jax.transfer.transferability import h_score, linear_probe, log_me

METRICS = {
    "log_me": log_me,
    "h_score": h_score,
    "linear_probe": linear_probe,
}
# More and fewer rows than features.
SIZES = [(40, 6), (24, 60)]


def labelled(
    rng, rows: int, width: int, *, strength: float = 0.7, classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """[3, E, D] fp32 features off the origin, and class ids they tell of."""
    labels = rng.integers(classes, size=rows)
    labels[:classes] = range(classes)
    centres = rng.normal(size=(classes, width))
    features = rng.normal(size=(3, rows, width)) + strength * centres[labels]
    features *= rng.uniform(0.1, 2, size=width)
    return np.float32(features + 0.5), labels


def scored(rng, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """[3, E, D] fp32 features, and [E, 2] scores that they tell of."""
    features = np.float32(rng.normal(size=(3, rows, width)))
    weights = rng.normal(size=(width, 2)) / np.sqrt(width)
    noise = 0.5 * rng.normal(size=(rows, 2))
    return features, features.mean(0) @ weights + noise + [0.0, 3.0]


def negative_evidence(log_precisions, f: np.ndarray, y: np.ndarray) -> float:
    """-log p(y | F, alpha, beta): the density of y's own Gaussian."""
    alpha, beta = np.exp(log_precisions)
    covariance = f @ f.T / alpha + np.eye(len(y)) / beta
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign > 0
    quadratic = y @ np.linalg.solve(covariance, y)
    return (log_det + quadratic + len(y) * np.log(2 * np.pi)) / 2


def most_evidence(f: np.ndarray, y: np.ndarray) -> float:
    """The largest log evidence a row, searched for in the plane."""
    starts = [(a, b) for a in (-3.0, 1.0, 5.0) for b in (-1.0, 3.0)]
    return max(
        -optimize.minimize(
            negative_evidence,
            start,
            args=(f, y),
            method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 4000},
        ).fun
        for start in starts
    ) / len(y)


def fixed_point(f: np.ndarray, y: np.ndarray) -> float:
    """You et al., 2021, algorithm 1, until nothing changes."""
    rows, width = f.shape
    alpha = beta = 1.0
    values, vectors = np.linalg.eigh(f.T @ f)
    values = np.maximum(values, 0)
    projected = vectors.T @ f.T @ y
    for _ in range(20_000):
        gamma = (beta * values / (alpha + beta * values)).sum()
        m = vectors @ (beta * projected / (alpha + beta * values))
        residual = np.square(f @ m - y).sum()
        old = alpha, beta
        alpha, beta = gamma / (m @ m), (rows - gamma) / residual
        if np.allclose(old, (alpha, beta), rtol=1e-13, atol=0):
            break
    m = vectors @ (beta * projected / (alpha + beta * values))
    return (
        rows * np.log(beta)
        + width * np.log(alpha)
        - rows * np.log(2 * np.pi)
        - beta * np.square(f @ m - y).sum()
        - alpha * (m @ m)
        - np.log(alpha + beta * values).sum()
    ) / (2 * rows)


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_log_me_is_the_largest_evidence(rng, rows, width):
    features, labels = labelled(rng, rows, width)
    expected = [
        np.mean([most_evidence(f, np.float64(labels == c)) for c in range(3)])
        for f in np.float64(features)
    ]
    ours = log_me(features, labels, num_classes=3)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    features, scores = scored(rng, rows, width)
    expected = [
        np.mean([most_evidence(f, y) for y in scores.T])
        for f in np.float64(features)
    ]
    np.testing.assert_allclose(log_me(features, scores), expected, atol=1e-6)


def test_log_me_is_where_the_papers_fixed_point_ends(rng):
    features, labels = labelled(rng, 40, 6)
    expected = [
        np.mean([fixed_point(f, np.float64(labels == c)) for c in range(3)])
        for f in np.float64(features)
    ]
    ours = log_me(features, labels, num_classes=3)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_log_me_is_the_larger_of_two_maxima():
    """Strong and weak features that tell alike; then only the weak ones."""
    f = np.diag([6.0] * 6 + [0.03] * 4 + [0.0] * 2)
    y = np.array([64.0] * 6 + [2.0] * 4 + [0.014] * 2)
    expected = most_evidence(f, y)
    assert fixed_point(f, y) < expected - 0.1
    np.testing.assert_allclose(log_me(f[None], y), [expected], atol=1e-6)


def test_log_me_finds_the_limits(rng):
    """All is noise; or all is signal, whatever the noise's precision."""
    f = rng.normal(size=(30, 4))
    y = rng.normal(size=30)
    y -= f @ np.linalg.lstsq(f, y, rcond=None)[0]
    noise = -(1 + np.log(2 * np.pi * np.square(y).mean())) / 2
    np.testing.assert_allclose(log_me(f[None], y), [noise], atol=1e-6)
    # As much along each direction as the prior expects: nothing is left over.
    f = rng.normal(size=(10, 400))
    left, values, _ = np.linalg.svd(f, full_matrices=False)
    y = 3 * left @ (values * rng.choice([-1, 1], size=10))
    signal = stats.multivariate_normal(cov=9 * f @ f.T).logpdf(y) / 10
    np.testing.assert_allclose(log_me(f[None], y), [signal], atol=1e-6)


def covariance_of_means(f: np.ndarray, labels: np.ndarray) -> np.ndarray:
    means = np.stack([f[labels == label].mean(0) for label in labels])
    return np.cov(means.T, bias=True)


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_h_score_is_the_trace(rng, rows, width):
    features, labels = labelled(rng, rows, width)
    plain, shrunk = [], []
    for f in np.float64(features):
        between = covariance_of_means(f, labels)
        plain.append(np.trace(np.linalg.pinv(np.cov(f.T)) @ between))
        plain[-1] *= rows / (rows - 1)
        fitted = LedoitWolf().fit(f)
        inverse = np.linalg.inv(fitted.covariance_)
        shrunk.append((1 - fitted.shrinkage_) * np.trace(inverse @ between))
        assert 0.01 < fitted.shrinkage_ < 0.99
    ours = h_score(features, labels, num_classes=3, shrinkage=False)
    np.testing.assert_allclose(ours, plain, atol=1e-6)
    ours = h_score(features, labels, num_classes=3)
    np.testing.assert_allclose(ours, shrunk, atol=1e-6)


def test_h_score_says_nothing_with_few_rows_unless_shrunk(rng):
    features, labels = labelled(rng, 24, 60)
    features[0] = rng.normal(size=(24, 60))
    plain = h_score(features, labels, num_classes=3, shrinkage=False)
    np.testing.assert_allclose(plain, 2.0, atol=1e-9)
    shrunk = h_score(features, labels, num_classes=3)
    assert shrunk[0] < shrunk[1:].min() - 0.1


def test_h_score_of_scores_is_the_explained_variance(rng):
    """For one score the squared multiple correlation; more: canonical ones."""
    features, scores = scored(rng, 40, 6)
    f = np.float64(features[0])
    design = np.column_stack([np.ones(40), f])
    fitted = design @ np.linalg.lstsq(design, scores[:, 0], rcond=None)[0]
    squared = np.var(fitted) / np.var(scores[:, 0])
    ours = h_score(features[:1], scores[:, 0], shrinkage=False)
    np.testing.assert_allclose(ours, [squared], atol=1e-6)
    within, across = np.cov(f.T, scores.T)[:6], np.cov(scores.T, f.T)[:2]
    between = within[:, 6:] @ np.linalg.solve(across[:, :2], across[:, 2:])
    expected = np.trace(np.linalg.solve(within[:, :6], between))
    ours = h_score(features[:1], scores, shrinkage=False)
    np.testing.assert_allclose(ours, [expected], atol=1e-6)


def refitted(f: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Predictions [E, C], each of a readout fitted to the other rows."""
    x = f / f.std(0)
    predictions = []
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        readout = Ridge(alpha=penalty * x.shape[1], solver="svd")
        readout.fit(x[others], y[others])
        slope = readout.predict(x[row : row + 1])[0] - y[others].mean(0)
        predictions.append(slope + y.mean(0))
    return np.array(predictions)


@pytest.mark.parametrize(("rows", "width"), SIZES)
@pytest.mark.parametrize("penalty", [1.0, 0.03])
def test_linear_probe_is_right_as_often_as_refits(rng, rows, width, penalty):
    features, labels = labelled(rng, rows, width, strength=0.2)
    expected = [
        np.mean(refitted(f, np.eye(3)[labels], penalty).argmax(1) == labels)
        for f in np.float64(features)
    ]
    assert 0.3 < np.mean(expected) < 0.9
    ours = linear_probe(features, labels, num_classes=3, penalty=penalty)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    features, scores = scored(rng, rows, width)
    expected = []
    for f in np.float64(features):
        guesses = refitted(f, scores, penalty)
        each = [
            stats.pearsonr(g, y).statistic
            for g, y in zip(guesses.T, scores.T, strict=True)
        ]
        expected.append(np.mean(each))
    ours = linear_probe(features, scores, penalty=penalty)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_features_that_tell_more_score_higher(rng, name):
    _, labels = labelled(rng, 90, 12)
    noise = rng.normal(size=(90, 12))
    scores = rng.normal(size=(90, 1))
    for signal, targets, num_classes in [
        (rng.normal(size=(3, 12))[labels], labels, 3),
        (scores * rng.normal(size=12), scores, None),
    ]:
        features = np.float32([noise + s * signal for s in (0, 0.3, 0.6, 2)])
        values = METRICS[name](features, targets, num_classes=num_classes)
        assert (np.diff(values) > 0.01).all()


@pytest.mark.parametrize("penalty", [1.0, 1e-6])
def test_linear_probe_is_at_chance_where_there_is_nothing_to_tell(rng, penalty):
    """A leak would lift it; means that leave the row out would sink it."""
    features = np.float32(rng.normal(size=(400, 24, 40)))
    labels = np.arange(24) % 2
    accuracy = linear_probe(features, labels, num_classes=2, penalty=penalty)
    # 400 means of 24 rows that are not quite independent.
    assert abs(accuracy.mean() - 0.5) < 0.03
    if penalty == 1:
        # Nearly interpolating readouts are off in r, though not in covariance.
        r = linear_probe(features, rng.normal(size=24), penalty=penalty)
        assert abs(r.mean()) < 0.06


FEATURES = hnp.arrays(
    np.float32,
    (2, 9, 4),
    elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize("name", METRICS)
@hypothesis.given(
    FEATURES,
    hnp.arrays(np.int64, (9,), elements=st.integers(0, 3)),
    st.permutations(range(9)),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_bounds_and_the_order_of_examples(name, features, labels, order):
    metric = METRICS[name]
    values = metric(features, labels, num_classes=4)
    assert np.isfinite(values).all()
    bound = {"h_score": 3.0, "linear_probe": 1.0}.get(name)
    if bound:
        assert (values >= 0).all()
        assert (values <= bound + 1e-9).all()
    shuffled = metric(features[:, order], labels[order], num_classes=4)
    np.testing.assert_allclose(shuffled, values, atol=1e-6)
    scores = np.float64(labels)
    values = metric(features, scores)
    assert np.isfinite(values).all()
    if bound:
        assert (np.abs(values) <= 1 + 1e-9).all()
    shuffled = metric(features[:, order], scores[order])
    np.testing.assert_allclose(shuffled, values, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_scale_does_not_matter(rng, name):
    features, labels = labelled(rng, 24, 8)
    values = METRICS[name](features, labels, num_classes=3)
    for scale in (1e30, 1e-30):
        scaled = METRICS[name](
            features * np.float32(scale), labels, num_classes=3
        )
        np.testing.assert_allclose(scaled, values, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("fill", [0.0, 0.1])
def test_features_that_say_nothing(name, fill):
    """As with zero prompts; balanced classes, of which one never occurs."""
    features = np.full((2, 8, 5), fill, np.float32)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    values = METRICS[name](features, labels, num_classes=3)
    assert np.isfinite(values).all()
    expected = {"h_score": 0.0, "linear_probe": 0.5}
    if name in expected:
        np.testing.assert_allclose(values, expected[name], atol=1e-9)
    one_class = METRICS[name](features, 0 * labels, num_classes=3)
    assert np.isfinite(one_class).all()
    for scores in (np.zeros(8), np.full(8, 0.1), np.linspace(0, 1, 8)):
        values = METRICS[name](features, scores)
        assert np.isfinite(values).all()
        if name in expected:
            np.testing.assert_allclose(values, 0, atol=1e-9)


def test_classes_that_never_occur_change_nothing(rng):
    features, labels = labelled(rng, 24, 8)
    for metric in METRICS.values():
        np.testing.assert_allclose(
            metric(features, labels, num_classes=5),
            metric(features, labels, num_classes=3),
            atol=1e-9,
        )


def test_targets_that_features_fit_exactly_are_bounded(rng):
    features = np.float32(rng.integers(-3, 4, size=(1, 50, 3)))
    exact = features[0] @ np.array([1.0, -2.0, 0.5])
    values = [metric(features, exact)[0] for metric in METRICS.values()]
    assert np.isfinite(values).all()
    noisy = log_me(features, exact + 1e-3 * rng.normal(size=50))
    assert noisy[0] < values[0] < 60


def test_results_are_float64_and_nothing_else_becomes_so(rng):
    features, labels = labelled(rng, 24, 8)
    for metric in METRICS.values():
        value = metric(jnp.asarray(features), labels, num_classes=3)
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float64
        assert value.shape == (3,)
    assert jnp.ones(1).dtype == jnp.float32


def test_mistakes_say_what_was_expected(rng):
    features, labels = labelled(rng, 24, 8)
    scores = np.float64(labels)
    for args, num_classes, match in [
        ((features[0], labels), 3, r"expected \[M, E, D\]"),
        ((features[:, :1], labels[:1]), 3, "at least 2 rows"),
        ((features, labels[:-1]), 3, "one for each of the 24 rows"),
        ((features, scores[None]), None, "one for each of the 24 rows"),
        ((features, labels), None, "give num_classes"),
        ((features, labels), 2, "class ids from 0 to 1"),
        ((features, labels - 1), 3, "-1 to 1"),
        ((features, scores), 3, "float64"),
        ((features, scores + np.nan), None, "Targets are not finite"),
        ((features * np.nan, labels), 3, "Features are not finite"),
    ]:
        for metric in METRICS.values():
            with pytest.raises(UserError, match=match):
                metric(*args, num_classes=num_classes)
    with pytest.raises(UserError, match="penalty"):
        linear_probe(features, labels, num_classes=3, penalty=0)


def test_groups_are_left_out_together():
    """Against refits without the group, and no leak from a twin row."""
    rng = np.random.default_rng(5)
    pairs, width = 30, 12
    features = rng.normal(size=(2, 2 * pairs, width)).astype(np.float32)
    groups = rng.permutation(np.repeat(np.arange(pairs), 2))
    labels = np.zeros(2 * pairs, int)
    for group in range(pairs):  # one right candidate a question
        labels[rng.choice(np.flatnonzero(groups == group))] = 1
    found = linear_probe(
        features, labels, num_classes=2, groups=groups, penalty=0.1
    )
    for number, raw in enumerate(features.astype(np.float64)):
        x = (raw - raw.mean(0)) / raw.std(0)
        y = np.eye(2)[labels]
        right = []
        for group in range(pairs):
            kept = groups != group
            middle = x[kept].mean(0)
            fit = Ridge(alpha=0.1 * width, fit_intercept=True)
            fit.fit(x[kept], y[kept])
            for row in np.flatnonzero(~kept):
                said = y.mean(0) + fit.coef_ @ (x[row] - middle)
                right.append(said.argmax() == labels[row])
        assert found[number] == pytest.approx(np.mean(right), abs=1e-9)
    # Features that only tell the question: its twin would give it away.
    told = np.repeat(rng.normal(size=(pairs, 40)), 2, axis=0)[None]
    order = np.repeat(np.arange(pairs), 2)
    twins = np.tile([0, 1], pairs)
    alone = linear_probe(told.astype(np.float32), twins, num_classes=2)
    together = linear_probe(
        told.astype(np.float32), twins, num_classes=2, groups=order
    )
    assert alone < 0.2 < 0.4 < together < 0.6
    with pytest.raises(UserError, match="one group"):
        linear_probe(
            told.astype(np.float32), twins, num_classes=2, groups=0 * order
        )
