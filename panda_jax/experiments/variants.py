"""Runs of one cell: which is counted once, and which are rows of their own."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

# What a row or column says already.
_IDENTITY = ("task", "backbone", "method", "recipe", "seed")
# Settings of the distillation, which only PANDA has.
_DISTILLATION = (
    "kd_lambda",
    "kd_beta",
    "kd_weight",
    "kd_transform",
    "transfer_metric",
    "temperature",
    "fusion",
)
Excluded = tuple[str, "DoneRun", str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoneRun:
    """One run that is done.

    Attributes:
      run_id: its name.
      folder: below the folder of all, with `/`.
      nested: whether another run made it for itself.
      backbone: its id.
      kind: `model`, `prompt`, `source`, `pot`, `panda` or `control`.
      label: of the rows it is in, such as "PANDA paper".
      source: the source task; "" where there is none.
      target: the task it was trained on.
      seed: its seed.
      metric: of the value.
      value: in points of 100; higher = better.
      settings: those of `run.json`.
      needs: the prompts and data it rests on, by role.
    """

    run_id: str
    folder: str
    nested: bool
    backbone: str
    kind: str
    label: str
    source: str
    target: str
    seed: int
    metric: str
    value: float
    settings: dict[str, Any]
    needs: dict[str, Any]

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Backbone, label, source and target."""
        return self.backbone, self.label, self.source, self.target

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that tell it from another run of the same cell."""
        unused = set(_IDENTITY)
        if self.kind != "panda":
            unused |= set(_DISTILLATION)
        if self.kind in ("model", "source"):
            unused |= {"top_k"}
        return {k: v for k, v in self.settings.items() if k not in unused}


def settle(runs: Iterable[DoneRun]) -> tuple[list[DoneRun], list[Excluded]]:
    """Every run once, and at most one run a cell and seed.

    Of a run that lies in several folders the outermost counts. A run that
    another made for itself gives way to one of its cell that stands alone.
    Where the runs of a cell still differ in a setting (or, within a seed, in
    what they rest on), those settings become part of their label.

    Returns:
      The runs that count, in order of their folders, and (status, run, reason)
      of the others.
    """
    excluded: list[Excluded] = []
    ordered = sorted(
        runs, key=lambda r: (r.nested, r.folder.count("/"), r.folder)
    )
    once: dict[str, DoneRun] = {}
    for run in ordered:
        first = once.setdefault(run.run_id, run)
        if first is not run:
            excluded.append(("double", run, _double(run, first)))
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
            excluded.append(("other", run, reason))
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
            excluded.append(("other", run, reason))
        else:
            kept.append(run)
    return kept


def _labelled(runs: list[DoneRun]) -> list[DoneRun]:
    """Adds to the labels what tells runs of one cell apart."""
    rows: dict[tuple[str, str], list[DoneRun]] = {}
    for run in runs:
        rows.setdefault((run.backbone, run.label), []).append(run)
    labels: dict[str, str] = {}
    for (_, label), members in rows.items():
        settings = _differing(members, lambda run: run.cell, "compared")
        needs = []
        if not settings:
            needs = _differing(
                members, lambda run: (run.cell, run.seed), "needs"
            )
        for run in members:
            parts = [
                *(f"{k}={_short(run.settings.get(k))}" for k in settings),
                *(f"{k}={_short(run.needs.get(k))}" for k in needs),
            ]
            suffix = f" [{', '.join(parts)}]" if parts else ""
            labels[run.run_id] = label + suffix
    return [dataclasses.replace(run, label=labels[run.run_id]) for run in runs]


def _differing(runs: Sequence[DoneRun], key: Any, attribute: str) -> list[str]:
    """The names under which runs of the same key have different values."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(getattr(run, attribute))
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
    """A value as a label can hold it: `rte@` and six digits of a hash."""
    text = (
        pathlib.PurePath(value).name if isinstance(value, str) else str(value)
    )
    name, at, digest = text.partition("@")
    return f"{name}{at}{digest[:6]}" if at else text[:24]
