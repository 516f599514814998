"""Scores of predictions: higher is better, whatever the metric.

Each is computed by scikit-learn or SciPy, which are loaded on first use.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from panda_jax.errors import UserError, unknown_name

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, logits: np.ndarray) -> float:
    """The share of rows whose highest logit is the label's, 0 to 1."""
    from sklearn import metrics

    return float(metrics.accuracy_score(labels, logits.argmax(-1)))


def matthews(labels: np.ndarray, logits: np.ndarray) -> float:
    """Matthews' correlation, -1 to 1; 0 for constant predictions."""
    from sklearn import metrics

    return float(metrics.matthews_corrcoef(labels, logits.argmax(-1)))


def f1(labels: np.ndarray, logits: np.ndarray) -> float:
    """F1, 0 to 1: of class 1 for two classes, else the mean over classes.

    The mean takes every one of the C classes; a class that is neither in the
    labels nor predicted counts 0.
    """
    from sklearn import metrics

    classes = logits.shape[-1]
    options: dict[str, Any] = {"average": "binary"}
    if classes != 2:
        options = {"average": "macro", "labels": np.arange(classes)}
    score = metrics.f1_score(
        labels, logits.argmax(-1), zero_division=cast(Any, 0), **options
    )
    return float(score)


def pearson_spearman(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean of Pearson's and Spearman's correlation with the one logit.

    -1 to 1; 0 where predictions or labels are constant, because neither
    correlation is defined there.
    """
    from scipy import stats

    scores = logits[:, 0].astype(np.float64)
    labels = labels.astype(np.float64)
    if len(labels) < 2 or np.ptp(scores) == 0 or np.ptp(labels) == 0:
        return 0.0
    results: tuple[Any, Any] = (
        stats.pearsonr(labels, scores),
        stats.spearmanr(labels, scores),
    )
    mean = sum(result.statistic for result in results) / 2
    return float(np.nan_to_num(mean))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1": f1,
    "pearson_spearman": pearson_spearman,
}


def compute(name: str, labels: np.ndarray, logits: np.ndarray) -> float:
    """One metric of one set of predictions; higher is better.

    Args:
      name: a key of `METRICS`.
      labels: [E] class ids, or scores for regression.
      logits: [E, C]; C is 1 for regression.

    Raises:
      UserError: unknown name, shapes that do not fit, no row, or logits that
        are NaN or infinite (the run diverged).
    """
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    labels = np.asarray(labels)
    logits = np.asarray(logits, np.float32)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise UserError(
            f"Metric {name!r} got labels {labels.shape} and logits "
            f"{logits.shape}, expected [E] and [E, C] with E at least 1."
        )
    bad = int((~np.isfinite(logits)).any(-1).sum())
    if bad:
        raise UserError(
            f"Metric {name!r} got NaN or infinite logits in {bad} of "
            f"{len(labels)} rows: the run diverged. Lower the learning rate."
        )
    return METRICS[name](labels, logits)
