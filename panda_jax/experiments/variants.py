"""Runs of one cell: which is counted once, and which are rows of their own."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from panda_jax.experiments.outcomes import DoneRun, Excluded

# Why a second run of a cell and seed is left out, where it is of another
# experiment for all that can be seen.
RESTS = "rests on other prompts or data than another run of its cell and seed"


def settle(runs: Iterable[DoneRun]) -> tuple[list[DoneRun], list[Excluded]]:
    """Every run once, and at most one run a cell and seed.

    Of a run that lies in several folders the outermost counts. A run that
    another made for itself gives way to one of its cell that stands alone.
    Where the runs of a cell still differ in a setting, it becomes part of their
    label. What they rest on does not: each seed has its own prompts, so that
    rows would be torn apart by seed.

    Returns:
      The runs that count, in order of their folders, and the others.
    """
    excluded: list[Excluded] = []
    ordered = sorted(
        runs, key=lambda r: (r.nested, r.folder.count("/"), r.folder)
    )
    once: dict[str, DoneRun] = {}
    for run in ordered:
        first = once.setdefault(run.run_id, run)
        if first is not run:
            excluded.append(run.left_out("double", _double(run, first)))
    kept = _alone(list(once.values()), excluded)
    kept = _labelled(kept)
    counted: dict[tuple[Any, ...], DoneRun] = {}
    for run in kept:
        first = counted.setdefault((*run.cell, run.seed), run)
        if first is not run:
            reason = (
                f"a second run of the same cell and seed, whose settings do "
                f"not differ: {first.folder} counts"
            )
            if run.needs != first.needs:
                reason = f"{RESTS}: {first.folder} counts"
            excluded.append(run.left_out("other", reason))
    return sorted(counted.values(), key=lambda run: run.folder), excluded


def _double(run: DoneRun, first: DoneRun) -> str:
    reason = f"the same run as {first.folder}"
    if run.value != first.value:
        reason += (
            f", with another value: {run.value / 100!r} here, "
            f"{first.value / 100!r} there, which counts"
        )
    return reason


def _alone(runs: list[DoneRun], excluded: list[Excluded]) -> list[DoneRun]:
    """Leaves out what other runs made where the cell has its own runs."""
    own: dict[tuple[str, ...], list[DoneRun]] = {}
    for run in runs:
        if not run.nested:
            own.setdefault(run.cell, []).append(run)
    kept = []
    for run in runs:
        rivals = own.get(run.cell, []) if run.nested else []
        same_seed = [other for other in rivals if other.seed == run.seed]
        unlike = all(other.compared != run.compared for other in rivals)
        if rivals and (same_seed or unlike):
            first = (same_seed or rivals)[0]
            reason = (
                f"made for another run: the cell's own, {first.folder}, counts"
            )
            excluded.append(run.left_out("other", reason))
        else:
            kept.append(run)
    return kept


def _labelled(runs: list[DoneRun]) -> list[DoneRun]:
    """Adds to the labels what tells runs of one cell apart."""
    rows: dict[tuple[str, str], list[DoneRun]] = {}
    for run in runs:
        rows.setdefault((run.backbone, run.label), []).append(run)
    found: dict[str, DoneRun] = {}
    for (_, label), members in rows.items():
        names = _differing(members)
        for run in members:
            variant = {name: run.settings.get(name) for name in names}
            parts = [f"{name}={_short(v)}" for name, v in variant.items()]
            suffix = f" [{', '.join(parts)}]" if parts else ""
            found[run.run_id] = dataclasses.replace(
                run, label=label + suffix, variant=variant
            )
    return [found[run.run_id] for run in runs]


def _differing(runs: Sequence[DoneRun]) -> list[str]:
    """The names of settings that differ between runs of the same cell."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run.compared)
    return sorted(
        {
            name
            for group in groups.values()
            for name in {name for values in group for name in values}
            if any(
                values.get(name) != group[0].get(name) for values in group[1:]
            )
        }
    )


def _short(value: Any) -> str:
    """A value as a label can hold it: what is cut ends in digits of a hash."""
    text = str(value)
    short = pathlib.PurePath(text).name if isinstance(value, str) else text
    if short == text and len(text) <= 24:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{short[:17]}~{digest[:6]}"
