"""A model's outputs -> the answers of a task, and their scores."""

from typing import Any

import numpy as np

from panda_jax.data import task_metrics
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.errors import UserError
from panda_jax.tasks import views
from panda_jax.tasks.spec import TaskSpec

# As in BERT's own SQuAD code.
LONGEST_ANSWER = 30


def scores(
    spec: TaskSpec, examples: Examples, outputs: np.ndarray
) -> dict[str, float]:
    """Each of the task's metrics; higher = better.

    Args:
      spec: the task.
      examples: R rows.
      outputs: as `predictions` takes them.

    Raises:
      UserError: the outputs hold NaN or Inf.
    """
    targets = [views.target(spec, x) for x in examples.parsed_references]
    found = predictions(spec, examples, outputs)
    return {
        name: task_metrics.compute(
            name, targets, found, classes=len(spec.labels)
        )
        for name in spec.metrics
    }


def text_scores(
    spec: TaskSpec,
    examples: TextExamples,
    predictions: list[Any],
    written: views.Written = str,
) -> dict[str, float]:
    """Each of the task's metrics for answers of a text-to-text model.

    Args:
      spec: the task.
      examples: E rows.
      predictions: an answer a row, as `views.answer_from_text` reads them.
      written: texts as the model's vocabulary writes them.
    """
    targets = [
        views.text_target(spec, x, written) for x in examples.parsed_references
    ]
    return {
        name: task_metrics.compute(
            name, targets, predictions, classes=len(spec.labels)
        )
        for name in spec.metrics
    }


def floor(spec: TaskSpec, examples: AnyExamples) -> float:
    """The main metric of the best answer that reads nothing.

    That is one answer to every question: a class, a place among the
    candidates, no span, an empty text. What does not score above it has not
    learnt to read.

    Args:
      spec: the task.
      examples: the split, in either view.
    """
    view = views.text_target
    if isinstance(examples, Examples):
        view = views.target
    targets = [view(spec, x) for x in examples.parsed_references]
    answers: list[list[Any]] = [[""] * len(targets)]
    if spec.kind == "regression":
        answers = [[0.0] * len(targets)]
    elif spec.kind == "tags":
        answers = [[["O"] * len(tags) for tags in targets]]
    elif not spec.listed_choices and spec.kind != "span":
        classes = len(spec.choices) or len(spec.labels)
        answers = [[c] * len(targets) for c in range(classes)]
    return max(
        task_metrics.compute(
            spec.metric, targets, said, classes=len(spec.labels)
        )
        for said in answers
    )


def predictions(
    spec: TaskSpec, examples: Examples, outputs: np.ndarray
) -> list[Any]:
    """One answer a question, as `views.target` has the right ones.

    Args:
      spec: the task.
      examples: R rows.
      outputs: logits [R, C] (regression, choice: C = 1), [R, T, 2] of kind
        span; of kind tags the best tag's id [R, T], -1 where its logits are
        not finite.

    Raises:
      UserError: the outputs hold NaN or Inf: the run diverged.
    """
    outputs = np.asarray(outputs)
    bad = outputs < 0 if spec.kind == "tags" else ~np.isfinite(outputs)
    if bad.any():
        rows = int(bad.reshape(len(bad), -1).any(-1).sum())
        raise UserError(
            f"Task {spec.name!r}: NaN or infinite logits in {rows} of "
            f"{len(bad)} rows: the run diverged. Lower the learning rate."
        )
    if spec.kind == "classification":
        return outputs.argmax(-1).tolist()
    if spec.kind == "regression":
        return outputs[:, 0].astype(float).tolist()
    if spec.kind == "choice":
        return _chosen(spec, examples, outputs[:, 0])
    if spec.kind == "tags":
        return _tags(spec, examples, outputs)
    return _spans(examples, outputs)


def _chosen(
    spec: TaskSpec, examples: Examples, scores: np.ndarray
) -> list[Any]:
    """The candidate of the highest score: its id, or its text if listed."""
    rows = examples.rows(np.arange(examples.questions))
    best = np.where(rows >= 0, scores[rows], -np.inf).argmax(-1).tolist()
    if not spec.listed_choices:
        return best
    return [
        reference[spec.choices[0]][i]
        for i, reference in zip(best, examples.parsed_references, strict=True)
    ]


def _tags(
    spec: TaskSpec, examples: Examples, tags: np.ndarray
) -> list[list[str]]:
    """A tag a word; words past the row's end get `O`."""
    found = []
    for row, labels, reference in zip(
        tags, examples.labels, examples.parsed_references, strict=True
    ):
        names = views.tag_names(spec, row[labels >= 0].tolist())
        missing = len(reference["tags"]) - len(names)
        found.append(names + ["O"] * missing)
    return found


def _spans(examples: Examples, logits: np.ndarray) -> list[str]:
    """The words between the best start and end, over a question's windows."""
    starts, ends = examples.char_starts, examples.char_ends
    assert starts is not None
    assert ends is not None
    R, T = starts.shape
    start, end = (np.where(starts > 0, logits[..., i], -np.inf) for i in (0, 1))
    best = np.full(R, -np.inf)
    where = np.zeros((R, 2), np.int64)
    for more in range(min(LONGEST_ANSWER, T)):
        total = start[:, : T - more] + end[:, more:]
        at = total.argmax(-1)
        value = total[np.arange(R), at]
        better = value > best
        best[better] = value[better]
        where[better] = np.stack([at, at + more], -1)[better]
    # The best window comes last of its question's.
    order = np.lexsort((best, examples.question))
    last_of = np.searchsorted(
        examples.question, np.arange(examples.questions), side="right"
    )
    found = []
    for row, reference in zip(
        order[last_of - 1], examples.parsed_references, strict=True
    ):
        first, last = where[row]
        begin, stop = starts[row, first] - 1, ends[row, last] - 1
        found.append(reference["context"][max(begin, 0) : max(stop, 0)])
    return found
