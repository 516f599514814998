import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panda_jax import metrics
from panda_jax.errors import UserError


def _sample(seed, classes, rows=40):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return labels, rng.normal(size=(rows, classes)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_classification_against_counts(seed, classes):
    labels, logits = _sample(seed, classes)
    guess = logits.argmax(1)
    assert metrics.compute("accuracy", labels, logits) == pytest.approx(
        np.mean(guess == labels)
    )
    scores = []
    for c in range(classes):
        hit = np.sum((guess == c) & (labels == c))
        total = np.sum(guess == c) + np.sum(labels == c)
        scores.append(2 * hit / total if total else 0.0)
    want = scores[1] if classes == 2 else np.mean(scores)
    assert metrics.compute("f1", labels, logits) == pytest.approx(want)
    # Matthews is the correlation of the one-hot rows, centred per class.
    a, b = np.eye(classes)[labels], np.eye(classes)[guess]
    a, b = a - a.mean(0), b - b.mean(0)
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    want = (a * b).sum() / norm if norm else 0.0
    got = metrics.compute("matthews", labels, logits)
    assert got == pytest.approx(want, abs=1e-9)


def test_pearson_spearman_against_numpy():
    rng = np.random.default_rng(3)
    labels = rng.uniform(0, 5, 50).astype(np.float32)
    logits = (labels**3 + rng.normal(size=50)).astype(np.float32)[:, None]
    ranks = [np.argsort(np.argsort(x)) for x in (labels, logits[:, 0])]
    want = np.corrcoef(labels, logits[:, 0])[0, 1] / 2
    want += np.corrcoef(*ranks)[0, 1] / 2
    got = metrics.compute("pearson_spearman", labels, logits)
    assert got == pytest.approx(want, abs=1e-6)
    got = metrics.compute("pearson_spearman", labels, -logits)
    assert got == pytest.approx(-want, abs=1e-6)


def test_constant_predictions_give_zero_not_nan():
    labels = np.array([0.0, 1.0, 5.0], np.float32)
    flat = np.full((3, 1), 2.5, np.float32)
    assert metrics.compute("pearson_spearman", labels, flat) == 0.0
    same = np.ones(3, np.float32)
    assert metrics.compute("pearson_spearman", same, labels[:, None]) == 0.0
    logits = np.array([[2.0, 1.0]] * 4)
    assert metrics.compute("matthews", np.array([0, 1, 0, 1]), logits) == 0.0
    assert metrics.compute("f1", np.array([0, 0, 0, 0]), logits) == 0.0


def test_errors_say_what_is_wrong():
    labels, logits = _sample(0, 2)
    with pytest.raises(UserError, match="metric 'acuracy'.*'accuracy'"):
        metrics.compute("acuracy", labels, logits)
    logits[3, 1] = np.nan
    with pytest.raises(UserError, match="in 1 of 40 rows: the run diverged"):
        metrics.compute("accuracy", labels, logits)
    with pytest.raises(UserError, match="expected .E. and .E, C."):
        metrics.compute("accuracy", labels[:-1], _sample(0, 2)[1])
    with pytest.raises(UserError, match="at least 1"):
        metrics.compute("accuracy", labels[:0], logits[:0])
