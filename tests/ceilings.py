"""The best score that what a model is shown allows, a task and view.

    python tests/ceilings.py DATA_DIR [TASK ...]

Rows that are shown alike can only be answered alike: the best answer to a group
of them is the one that most have. Prints task, split, view, rows, distinct
inputs, the share of rows that the best answers get right, and the share of the
most frequent answer. Case is kept as the files have it; an uncased tokenizer
can only make more rows alike.
"""

import collections
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence

from panda_jax.tasks import sources, specs, views
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError

# Input and answer of each row.
Shown = Iterable[tuple[Hashable, Hashable]]


def encoder(spec: TaskSpec, row: Row) -> tuple[Hashable, Hashable]:
    """What an encoder's head reads of a row, and what it is to answer."""
    texts = tuple(views.encoder_texts(spec, row))
    if spec.kind == "choice":
        return texts, tuple(views.right_candidates(spec, row))
    return texts, row["label"]


def text(spec: TaskSpec, row: Row) -> tuple[Hashable, Hashable]:
    """What a text-to-text model reads of a row, and is to write."""
    return views.text_example(spec, row)


VIEWS: dict[str, Callable[[TaskSpec, Row], tuple[Hashable, Hashable]]] = {
    "encoder": encoder,
    "text": text,
}


def best(shown: Shown) -> tuple[int, int, float, float]:
    """Rows, distinct inputs, share that can be right, share of one answer."""
    groups: dict[Hashable, collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    answers: collections.Counter = collections.Counter()
    for given, answer in shown:
        groups[given][answer] += 1
        answers[answer] += 1
    rows = answers.total()
    right = sum(max(group.values()) for group in groups.values())
    return rows, len(groups), right / rows, max(answers.values()) / rows


def contradictions(shown: Shown) -> list[Hashable]:
    """The inputs that rows of several answers share."""
    groups = collections.defaultdict(set)
    for given, answer in shown:
        groups[given].add(answer)
    return [given for given, answers in groups.items() if len(answers) > 1]


def main(folder: str, names: Sequence[str]) -> None:
    for name in names or specs.names():
        if name in specs.MIXTURES or specs.get(name).offline:
            continue
        spec = specs.get(name)
        if spec.kind not in ("classification", "choice"):
            continue
        for split in ("train", "validation"):
            try:
                rows = sources.find(spec, data_dir=folder).rows(split)
            except (UserError, OSError) as error:
                print(f"{name} {split}: {str(error)[:70]}")
                continue
            for view, pose in VIEWS.items():
                found = best(pose(spec, row) for row in rows)
                print(
                    f"{name:10}{split:12}{view:9}{found[0]:7}{found[1]:7}"
                    f"{found[2]:8.4f}{found[3]:8.4f}"
                )


if __name__ == "__main__":
    main(os.fspath(sys.argv[1]), sys.argv[2:])
