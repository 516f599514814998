"""Scores of answers: higher is better, whatever the metric.

An answer is what a question is answered with, a class id, a number, a text or
the tags of a sentence, so that classifiers and text-to-text models are scored
alike.  scikit-learn and SciPy are loaded on first use.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from panda_jax.data.text_metrics import (
    answer_exact_match,
    answer_f1,
    role_f1,
    span_f1,
)
from panda_jax.data.text_metrics import tag_spans as tag_spans
from panda_jax.errors import UserError, unknown_name

Metric = Callable[..., float]


class Grouped(NamedTuple):
    """The right class id of one row, and which question the row belongs to."""

    group: Hashable
    value: int


def accuracy(targets: Sequence[Any], predictions: Sequence[int]) -> float:
    """The share of predicted class ids that are right, 0 to 1.

    Targets are class ids, alone or `Grouped`.
    """
    labels, guesses = _ids(targets, predictions)
    return float((labels == guesses).mean())


def matthews(targets: Sequence[Any], predictions: Sequence[int]) -> float:
    """Matthews' correlation of class ids, -1 to 1; 0 for constant predictions.

    The form for any number of classes (Gorodkin, 2004); -1, an answer that is
    no label, is one more class that is never right.
    """
    from sklearn import metrics

    return float(metrics.matthews_corrcoef(*_ids(targets, predictions)))


def f1(
    targets: Sequence[Any], predictions: Sequence[int], *, classes: int
) -> float:
    """F1, 0 to 1: of class 1 for two classes, else the mean over classes.

    The mean takes every one of the classes; a class that is neither in the
    targets nor predicted counts 0.  Over all answers of MultiRC it is F1a
    (Khashabi et al., 2018).

    Raises:
      UserError: fewer than two classes.
    """
    from sklearn import metrics

    if classes < 2:
        raise UserError(
            f"Metric 'f1' got {classes} classes, expected at least 2: it is "
            "for tasks with labels."
        )
    labels, guesses = _ids(targets, predictions)
    score = metrics.f1_score(
        labels,
        guesses,
        # Named, so that -1 among the predictions is no class of its own.
        labels=[1] if classes == 2 else range(classes),
        average="macro",
        zero_division=cast(Any, 0),
    )
    return float(score)


def exact_match(
    targets: Sequence[Grouped], predictions: Sequence[int]
) -> float:
    """The share of questions all of whose rows are right, 0 to 1.

    MultiRC's EM, as in SuperGLUE: a question's rows are its answers.

    Raises:
      UserError: targets are not `Grouped`.
    """
    right: dict[Hashable, bool] = {}
    for target, guess in zip(targets, predictions, strict=True):
        if not isinstance(target, Grouped):
            raise UserError(
                "Metric 'exact_match' got targets without groups: the task "
                "must name the field that says which rows make one question."
            )
        good = bool(guess == target.value)
        right[target.group] = right.get(target.group, True) and good
    return sum(right.values()) / len(right)


def pearson_spearman(
    targets: Sequence[float], predictions: Sequence[float]
) -> float:
    """Mean of Pearson's and Spearman's correlation, -1 to 1.

    0 where predictions or targets are constant, because neither correlation
    is defined there.

    Raises:
      UserError: a prediction is NaN or infinite (the run diverged).
    """
    from scipy import stats

    labels = np.asarray(targets, np.float64)
    guesses = np.asarray(predictions, np.float64)
    bad = int((~np.isfinite(guesses)).sum())
    if bad:
        raise UserError(
            f"Metric 'pearson_spearman' got NaN or infinity in {bad} of "
            f"{len(guesses)} predictions: the run diverged. Lower the "
            "learning rate."
        )
    if len(labels) < 2 or np.ptp(guesses) == 0 or np.ptp(labels) == 0:
        return 0.0
    results: tuple[Any, Any] = (
        stats.pearsonr(labels, guesses),
        stats.spearmanr(labels, guesses),
    )
    mean = sum(result.statistic for result in results) / 2
    return float(np.nan_to_num(mean))


def _ids(
    targets: Sequence[Any], predictions: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    plain = [t.value if isinstance(t, Grouped) else t for t in targets]
    return np.asarray(plain), np.asarray(predictions)


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "exact_match": exact_match,
    "pearson_spearman": pearson_spearman,
    "answer_f1": answer_f1,
    "answer_exact_match": answer_exact_match,
    "span_f1": span_f1,
    "role_f1": role_f1,
}


def compute(
    name: str,
    targets: Sequence[Any],
    predictions: Sequence[Any],
    *,
    classes: int = 0,
) -> float:
    """One metric of one set of answers; higher is better.

    Args:
      name: a key of `METRICS`; its function says what answers it takes.
      targets: what is right, one entry a question (or a row, if `Grouped`).
      predictions: the answers, equally many; -1 where a class id is asked for
        and the answer is no label, which is never right.
      classes: how many labels the task has, for `f1`.

    Raises:
      UserError: unknown name, no or not equally many answers, or what the
        metric's own function refuses.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    if len(targets) != len(predictions) or not len(targets):
        raise UserError(
            f"Metric {name!r} got {len(targets)} targets and "
            f"{len(predictions)} predictions, expected equally many and at "
            "least 1."
        )
    metric = METRICS[name]
    if metric is f1:
        # The mean counts classes that no answer names.
        metric = functools.partial(f1, classes=classes)
    return metric(targets, predictions)
