"""Whether runs may be averaged and compared: one metric, data and weights."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from panda_jax.experiments.outcomes import DoneRun, Excluded
from panda_jax.experiments.summaries import spread
from panda_jax.experiments.variants import RESTS

_OTHER = "other metric"


def one_metric(
    runs: Sequence[DoneRun],
) -> tuple[list[DoneRun], list[Excluded]]:
    """The runs of each target's most frequent metric, and the others.

    Points of two metrics have no mean.
    """
    counts: dict[Hashable, Counter[str]] = {}
    for run in runs:
        counts.setdefault(_place(run), Counter())[run.metric] += 1
    kept: list[DoneRun] = []
    others: list[Excluded] = []
    for run in runs:
        found = counts[_place(run)]
        metric = max(sorted(found), key=found.__getitem__)
        if run.metric == metric:
            kept.append(run)
        else:
            reason = (
                f"its score is {run.metric or 'of no name'}, that of most "
                f"runs of {run.target} is {metric or 'of no name'}"
            )
            others.append(run.left_out(_OTHER, reason))
    return kept, others


def warnings(runs: Sequence[DoneRun], left: Iterable[Excluded]) -> list[str]:
    """What makes averages and differences doubtful, a sentence each."""
    left = list(left)
    unlike = sorted({_place(out) for out in left if out.status == _OTHER})
    found = [
        f"The runs of {target} on {backbone} have more than one metric: only "
        "those of the most frequent one count."
        for backbone, target in unlike
    ]
    rows = [run for run in runs if run.kind != "source"]
    adapted = [run for run in rows if run.kind != "model"]
    found += _unlike(
        rows, "development data", lambda run: run.needs.get("development data")
    )
    found += _unlike(
        rows,
        "training data",
        lambda run: run.needs.get("training data"),
        place=lambda run: (
            f"{run.target} on {run.backbone} with "
            f"{run.settings.get('train_examples') or 'all'} rows"
        ),
    )
    found += _unlike(
        runs,
        "backbone weights",
        lambda run: run.needs.get("backbone weights"),
        place=lambda run: run.backbone,
    )
    # Model-tuning has float32 of its own accord.
    found += _unlike(adapted, "dtype", lambda run: run.needs.get("dtype"))
    found += _unlearnt(rows)
    rest = sum(RESTS in out.reason for out in left)
    if rest:
        found.append(
            f"{rest} runs rest on other prompts or data than a run of the same "
            "cell and seed: the folder holds more than one experiment. Give "
            "the report the folder of one."
        )
    return [f"Warning: {sentence}" for sentence in found]


def _unlike(
    runs: Iterable[DoneRun],
    what: str,
    value: Callable[[DoneRun], Any],
    place: Callable[[DoneRun], str] = lambda r: f"{r.target} on {r.backbone}",
) -> list[str]:
    """A sentence for each place whose runs differ in what they state."""
    groups: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        if (stated := value(run)) is not None:
            group = groups.setdefault(place(run), {})
            group.setdefault(str(stated), []).append(run.folder)
    told = []
    for name, group in groups.items():
        if len(group) > 1:
            sides = (
                f"{stated[:8]} ({len(folders)} runs, such as {folders[0]})"
                for stated, folders in group.items()
            )
            told.append(
                f"the runs of {name} differ in {what}: {', '.join(sides)}. "
                "What compares them compares that too."
            )
    return told


def _unlearnt(runs: Iterable[DoneRun]) -> list[str]:
    """Where prompt-tuning, less its sd over seeds, is not above the floor."""
    values: dict[tuple[str, str], list[float]] = {}
    floors: dict[tuple[str, str], float] = {}
    for run in runs:
        if run.kind == "prompt" and math.isfinite(run.floor):
            values.setdefault(_place(run), []).append(run.value)
            floors[_place(run)] = run.floor
    told: dict[str, list[str]] = {}
    for place, points in values.items():
        found = spread(points)
        # One seed has no sd.
        if found.mean - (found.sd if found.n > 1 else 0.0) <= floors[place]:
            told.setdefault(place[0], []).append(
                f"{place[1]} ({floors[place]:.1f})"
            )
    return [
        f"on {backbone} prompt-tuning is within one standard deviation of "
        f"what one answer to every question scores: {', '.join(targets)}. "
        "Where nothing is learnt, differences say little of methods."
        for backbone, targets in told.items()
    ]


def fixed_rows(runs: Iterable[DoneRun]) -> list[str]:
    """What no interval holds where few rows were learnt from."""
    given = (run.settings.get("train_examples") for run in runs)
    sizes = sorted({size for size in given if type(size) is int})
    if not sizes:
        return []
    return [
        f"Learnt from the same {', '.join(map(str, sizes))} rows of a task by "
        "every seed: what other rows would give is in no interval."
    ]


def _place(run: DoneRun | Excluded) -> tuple[str, str]:
    return run.backbone, run.target
