"""Run folders, read with distrust: what counts, and by name what does not.

`read_results` finds every run below a folder. One run a cell and seed counts,
the others are left out with a reason; `warnings` says what makes the averages
of those that count doubtful.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from panda_jax.config import registry
from panda_jax.errors import UserError
from panda_jax.experiments.grid.grid import GRID, read_list
from panda_jax.io.files import PathLike, read_json
from panda_jax.training import identity

# Kind -> the name of its rows; PANDA's have the recipe.
LABELS = {
    "model": "model-tuning",
    "prompt": "prompt-tuning",
    "pot": "PoT",
    "control": "PANDA weight 0",
    "source": "source prompt",
}
# The scores of a result file that a report may be of.
VALUES = ("best", "final", "first_epoch")
# Any of them makes a folder that of a run.
MARKS = ("run.json", "result.json", "failed.json")
# A folder of this name holds the runs that made source prompts.
SOURCES = "sources"
UNKNOWN = "(unknown)"
# Why a second run of a cell and seed is left out, where it is of another
# experiment for all that can be seen.
RESTS = "rests on other prompts or data than another run of its cell and seed"
# Never runs, and checkpoints are thousands of files.
_NO_RUNS = ("checkpoints", "model", "prompt")
_OTHER = "other metric"
# What a row or column says already.
_IDENTITY = ("task", "backbone", "method", "recipe", "seed")
# Settings of the distillation, which only PANDA has.
_DISTILLATION = (
    "kd_lambda", "kd_beta", "kd_weight", "kd_transform", "transfer_metric",
    "temperature", "fusion",
)  # fmt: skip


class Excluded(NamedTuple):
    """A run that no average holds; "" for what it does not say of itself.

    Attributes:
      status: `failed` (the run says why), `unfinished`, `not begun` (a grid
        lists it), `not listed` (it lies below a grid that lists it no more),
        `unreadable`, `double` (another folder of the same run counts), `other
        metric` (than the target's other runs) or `other` (another run of the
        same cell counts).
      run_id: its name; its folder where it says none.
      folder: below the folder of all, with `/`.
      label: the row that it would be in.
    """

    status: str
    run_id: str
    folder: str
    reason: str
    backbone: str = ""
    label: str = ""
    source: str = ""
    target: str = ""
    seed: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoneRun:
    """One run that is done.

    Attributes:
      folder: below the folder of all, with `/`.
      nested: whether another run made it for itself.
      kind: `model`, `prompt`, `source`, `pot`, `panda` or `control`.
      label: of the rows it is in, such as "PANDA paper".
      source: the source task; "" where there is none.
      value: of its metric, in points of 100; higher = better.
      settings: those of `run.json`.
      needs: the prompts and data it rests on, by role.
      floor: points of the best answer that reads nothing; NaN if not said.
      selected_on: the rows by which the best evaluation was chosen.
      split: the rows of the score.
      looks: evaluations that it was chosen among; 0 if not said.
      variant: settings in which the runs of its label differ; the label has
        their names.
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
    floor: float = math.nan
    selected_on: str = "validation"
    split: str = "validation"
    looks: int = 0
    variant: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str, str, str]:
        """Backbone, label, source and target."""
        return self.backbone, self.label, self.source, self.target

    @property
    def compared(self) -> dict[str, Any]:
        """The settings that tell it from another run of the same cell."""
        distillation = _DISTILLATION if self.kind != "panda" else ()
        top_k = ["top_k"] if self.kind in ("model", "source") else ()
        unused = {*_IDENTITY, *distillation, *top_k}
        return {k: v for k, v in self.settings.items() if k not in unused}

    def left_out(self, status: str, reason: str) -> Excluded:
        """The same run as one that does not count."""
        said = status, self.run_id, self.folder, reason
        return Excluded(*said, *self.cell, str(self.seed))


@dataclasses.dataclass(frozen=True)
class Results:
    """All runs below a folder: those that count, by folder, and the others.

    Attributes:
      value: which score was read: one of `VALUES`.
      targets: (backbone id, task) of what a grid lists as more than a source.
    """

    runs: tuple[DoneRun, ...]
    left_out: tuple[Excluded, ...]
    value: str
    targets: Set[tuple[str, str]] = frozenset()


def read_results(runs_dir: PathLike, *, value: str = "best") -> Results:
    """Reads every run folder at any depth.

    A folder with `result.json` is a run that is done, one with `failed.json`
    alone failed, one with neither is unfinished. Runs that a run made for
    itself (in `teacher`, `target_prompt`) count like any other, but once.
    Below a grid's list only the runs on it count: what lies there from other
    settings is of another experiment. It also says which have not begun.

    Args:
      runs_dir: the folder.
      value: the score that counts: of the `best` evaluation, the `final` one
        or that after the `first_epoch`.

    Raises:
      UserError: there is no such folder, no run in it, or no such value. A
        file that cannot be read only leaves out its run.
    """
    root = pathlib.Path(runs_dir)
    if value not in VALUES:
        raise UserError(f"value is {value!r}, expected one of {VALUES}.")
    if not root.is_dir():
        raise UserError(
            f"The folder of runs {str(root)!r} does not exist. Give the "
            "--out_dir of panda-jax grid, or any folder of run folders."
        )
    found: list[DoneRun] = []
    left: list[Excluded] = []
    grids: dict[str, dict[str, Excluded]] = {}
    targets: set[tuple[str, str]] = set()
    begun: set[str] = set()
    for folder, nested in _folders(root):
        name = folder.relative_to(root).as_posix()
        if (folder / GRID).exists():
            grids[name] = _listed(folder, name, targets)
        if not any((folder / mark).exists() for mark in MARKS):
            continue
        one = read_folder(folder, name, nested=nested, value=value)
        begun.add(name)
        # What a run made for itself is on the list with that run.
        places = [name, *map(str, pathlib.PurePosixPath(name).parents)]
        grid = next((grids[p] for p in places if p in grids), {})
        run = next((grid[p] for p in places if p in grid), None)
        if run is None and any(place in grids for place in places):
            if isinstance(one, DoneRun):
                one = one.left_out("", "")
            why = "not in the grid's present list"
            left.append(one._replace(status="not listed", reason=why))
        elif isinstance(one, DoneRun):
            found.append(one)
        elif run and run.folder == name:
            # Also of files that cannot be read the list knows whose they are.
            left.append(run._replace(status=one.status, reason=one.reason))
        else:
            left.append(one)
    listed = (run for grid in grids.values() for run in grid.values())
    left += [run for run in listed if run.folder not in begun]
    if not found and not left:
        raise UserError(
            f"No run below {str(root)!r}: expected folders with run.json and "
            "result.json, as panda-jax train and grid leave them."
        )
    found, unlike = one_metric(found)
    runs, others = settle(found)
    left_out = tuple(sorted([*left, *unlike, *others]))
    return Results(tuple(runs), left_out, value, targets)


def _folders(root: pathlib.Path) -> list[tuple[pathlib.Path, bool]]:
    """Folders of runs and grids in order, and whether in another run's.

    One that cannot be looked into is an error: runs would be left out unseen.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # renamed meanwhile
            raise UserError(
                f"The folder {error.filename!r} cannot be read: "
                f"{error.strerror}."
            )

    found: list[tuple[pathlib.Path, bool]] = []
    inside: set[str] = set()
    for place, folders, files in os.walk(root, onerror=refuse):
        nested = os.path.dirname(place) in inside
        is_run = any(mark in files for mark in MARKS)
        if is_run or GRID in files:
            found.append((pathlib.Path(place), nested))
        skipped = _NO_RUNS[:1]
        if is_run or nested:
            inside.add(place)
            skipped = _NO_RUNS
        # In place: os.walk goes where this says, in this order. A killed
        # process may have left a result on its way in a hidden folder.
        folders[:] = sorted(
            name
            for name in folders
            if name not in skipped and not name.startswith(".")
        )
    return found


def _listed(
    folder: pathlib.Path, name: str, targets: set[tuple[str, str]]
) -> dict[str, Excluded]:
    """Run folder -> what a grid lists there, as runs that have not begun.

    The (backbone, task) of those that are more than sources join `targets`.
    """
    found: dict[str, Excluded] = {}
    for run in read_list(folder):
        kind, _, recipe = run["kind"].partition("-")
        kind, recipe = _named(kind, recipe)
        if run["roles"] == ["source"]:
            kind = "source"
        else:
            targets.add((run["backbone"], run["task"]))
        place = (pathlib.PurePosixPath(name) / run["folder"]).as_posix()
        label = LABELS.get(kind, f"PANDA {recipe or 'paper'}")
        cell = run["backbone"], label, _text(run["source"] or ""), run["task"]
        said = "not begun", run["name"], place, "no file of it is there yet"
        found[place] = Excluded(*said, *cell, str(run["seed"]))
    return found


def read_folder(
    folder: pathlib.Path, name: str, *, nested: bool, value: str
) -> DoneRun | Excluded:
    """What became of the run in a folder that has one of `MARKS`.

    The name is that below the folder of all; a nested one lies in another
    run's. `value` is one of `VALUES`.
    """
    path = folder / "run.json"
    try:
        about = read_json(path) if path.exists() else {}
        settings = _mapping(about, "settings")
        path = folder / "result.json"
        if path.exists():
            result = read_json(path)
            # A result file may stand alone: it says itself what it is of.
            if about:
                identity.check_result(result, about, where=name)
            prompt = folder / "prompt" / "panda.json"
            if prompt.exists():
                identity.check_prompt(result, read_json(prompt), where=name)
            return _result(result, about, name, nested=nested, value=value)
        path = folder / "failed.json"
        run_id, status = about.get("run_id"), "unfinished"
        reason = "it has neither result.json nor failed.json"
        if path.exists():
            failure = read_json(path)
            said = _mapping(failure, "settings")
            settings = {"source": failure.get("source"), **settings, **said}
            run_id, status = failure.get("run_id") or run_id, "failed"
            reason = _text(failure.get("error") or "no reason is given")
        said = status, _text(run_id or name), name, reason
        return Excluded(*said, *_about(settings, about, name))
    except UserError as error:
        # By name alone: where the files lie is no part of the results.
        reason = str(error).replace(repr(str(path)), f"{name}/{path.name}")
        return Excluded("unreadable", name, name, reason)


def _result(
    result: dict[str, Any],
    about: dict[str, Any],
    name: str,
    *,
    nested: bool,
    value: str,
) -> DoneRun:
    """A run from what its files hold; UserError where that is no run."""
    where = f"{name}/result.json"
    for key in ("run_id", "task", "backbone", "method"):
        if not isinstance(result.get(key), str) or not result[key]:
            raise UserError(
                f"{where}: {key} is {result.get(key)!r}, expected a name."
            )
    seed = result.get("seed")
    if type(seed) is not int:
        raise UserError(f"{where}: seed is {seed!r}, expected a number.")
    given = _mapping(result, value).get("value")
    score = _number(given)
    if not math.isfinite(score):
        raise UserError(
            f"{where}: {value}.value is {given!r}, expected a finite number."
        )
    kind, label = kind_and_label(result, name)
    return DoneRun(
        run_id=result["run_id"],
        folder=name,
        nested=nested,
        backbone=result["backbone"],
        kind=kind,
        label=label,
        source=_source(kind, result.get("source")),
        target=result["task"],
        seed=seed,
        metric=_text(result.get("metric") or ""),
        value=100.0 * score,
        settings=identity.since_first(_mapping(about, "settings")),
        needs={**_mapping(about, "needs"), **_mapping(about, "fingerprints")},
        floor=100.0 * _number(result.get("floor")),
        selected_on=_text(result.get("selected_on") or "validation"),
        split=_text(result.get("split") or "validation"),
        looks=looks if type(looks := result.get("looks")) is int else 0,
    )


def kind_and_label(result: Mapping[str, Any], folder: str) -> tuple[str, str]:
    """What the run of a result file is in a table, and the name of its rows.

    A control's weight of 0 was set: one that is 0 because no similarity was
    found is PANDA all the same, and names the metric.

    Raises:
      UserError: another method.
    """
    method, weight = result["method"], result.get("kd_weight")
    named, recipe = _named(method, result.get("recipe"))
    kind = _kind(named, weight, folder)
    if kind == "control" and result.get("transfer_metric"):
        kind = "panda"
    label = _label(kind, recipe)
    if not label:
        raise UserError(
            f"{folder}/result.json: method is {method!r}, expected prompt, "
            "pot, panda or finetune."
        )
    return kind, label


def _named(method: Any, recipe: Any) -> tuple[Any, Any]:
    """A method as tables name its kind, and a recipe as this release does."""
    kind = registry.former({"method": method})["method"]
    return kind, registry.present({"recipe": recipe})["recipe"]


def _kind(method: str, weight: Any, folder: str) -> str:
    if method == "panda" and weight == 0:
        return "control"
    makes_source = SOURCES in pathlib.PurePosixPath(folder).parts
    return "source" if method == "prompt" and makes_source else method


def _label(kind: str, recipe: Any) -> str:
    panda = f"PANDA {_text(recipe or '')}".strip()
    return panda if kind == "panda" else LABELS.get(kind, "")


def _source(kind: str, source: Any) -> str:
    return _text(source or UNKNOWN) if kind in ("pot", "panda") else ""


def _about(
    settings: dict[str, Any], about: Mapping[str, Any], folder: str
) -> tuple[str, str, str, str, str]:
    """Backbone, label, source, target and seed of a run without a result."""
    named = _named(settings.get("method"), settings.get("recipe"))
    method, recipe = map(_text, (value or "" for value in named))
    kind = _kind(method, settings.get("kd_weight"), folder)
    needed = _text(_mapping(about, "needs").get("source") or "")
    source = needed.partition("@")[0] or _text(settings.get("source") or "")
    seed = settings.get("seed")
    return (
        _text(settings.get("backbone") or ""),
        _label(kind, recipe),
        # A source may be given as the folder of its prompt.
        _source(kind, pathlib.PurePath(source).name),
        _text(settings.get("task") or ""),
        "" if seed is None else _text(seed),
    )


def _number(value: Any) -> float:
    """A number as it is, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _mapping(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def one_metric(
    runs: Sequence[DoneRun],
) -> tuple[list[DoneRun], list[Excluded]]:
    """The runs of each target's most frequent metric, and the others.

    Points of two metrics have no mean.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for run in runs:
        counts.setdefault(_place(run), Counter())[run.metric] += 1
    most = {p: max(sorted(n), key=n.__getitem__) for p, n in counts.items()}
    kept: list[DoneRun] = []
    others: list[Excluded] = []
    for run in runs:
        metric = most[_place(run)]
        if run.metric == metric:
            kept.append(run)
            continue
        reason = (
            f"its score is {run.metric or 'of no name'}, that of most runs of "
            f"{run.target} is {metric or 'of no name'}"
        )
        others.append(run.left_out(_OTHER, reason))
    return kept, others


def settle(runs: Iterable[DoneRun]) -> tuple[list[DoneRun], list[Excluded]]:
    """Every run once, at most one a cell and seed, by folder; and the others.

    Of a run that lies in several folders the outermost counts. A run that
    another made for itself gives way to one of its cell that stands alone.
    Where the runs of a cell still differ in a setting, it becomes part of their
    label. What they rest on does not: each seed has its own prompts.
    """
    excluded: list[Excluded] = []
    once: dict[str, DoneRun] = {}
    ordered = sorted(
        runs, key=lambda r: (r.nested, r.folder.count("/"), r.folder)
    )
    for run in ordered:
        first = once.setdefault(run.run_id, run)
        if first is not run:
            reason = f"the same run as {first.folder}"
            if run.value != first.value:
                reason += (
                    f", with another value: {run.value / 100!r} here, "
                    f"{first.value / 100!r} there, which counts"
                )
            excluded.append(run.left_out("double", reason))
    counted: dict[tuple[Any, ...], DoneRun] = {}
    for run in _labelled(_alone(list(once.values()), excluded)):
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
            first = (same_seed or rivals)[0].folder
            reason = f"made for another run: the cell's own, {first}, counts"
            excluded.append(run.left_out("other", reason))
        else:
            kept.append(run)
    return kept


def _labelled(runs: list[DoneRun]) -> list[DoneRun]:
    """Adds to the labels what tells runs of one cell apart."""
    firsts: dict[Any, dict[str, Any]] = {}
    names: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        own = run.compared
        first = firsts.setdefault(run.cell, own)
        names.setdefault((run.backbone, run.label), set()).update(
            n for n in {*first, *own} if first.get(n) != own.get(n)
        )
    found = []
    for run in runs:
        of_row = sorted(names[run.backbone, run.label])
        variant = {name: run.settings.get(name) for name in of_row}
        parts = [f"{name}={_short(v)}" for name, v in variant.items()]
        label = run.label + (f" [{', '.join(parts)}]" if parts else "")
        found.append(dataclasses.replace(run, label=label, variant=variant))
    return found


def _short(value: Any) -> str:
    """A value as a label can hold it: what is cut ends in digits of a hash."""
    text = str(value)
    short = pathlib.PurePath(text).name if isinstance(value, str) else text
    if short == text and len(text) <= 24:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{short[:17]}~{digest[:6]}"


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
    # Model-tuning has float32 of its own accord.
    adapted = [run for run in rows if run.kind != "model"]

    def cell(run: DoneRun) -> str:
        return f"{run.target} on {run.backbone}"

    def sized(run: DoneRun) -> str:
        size = run.settings.get("train_examples") or "all"
        held = ", some held out" if run.selected_on == "held_out" else ""
        return f"{cell(run)} with {size} rows{held}"

    found += _unlike(rows, "development data", cell)
    found += _unlike(rows, "training data", sized)
    found += _unlike(runs, "backbone weights", lambda run: run.backbone)
    found += _unlike(adapted, "dtype", cell)
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
    runs: Iterable[DoneRun], what: str, place: Callable[[DoneRun], str]
) -> list[str]:
    """A sentence for each place whose runs differ in what they rest on."""
    groups: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        if (stated := run.needs.get(what)) is not None:
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
        # One seed has no sd.
        sd = statistics.stdev(points) if len(points) > 1 else 0.0
        if statistics.fmean(points) - sd <= floors[place]:
            target = f"{place[1]} ({floors[place]:.1f})"
            told.setdefault(place[0], []).append(target)
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


def selection(runs: Iterable[DoneRun]) -> list[str]:
    """By which rows the best evaluations were chosen, and among how many."""
    groups: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        groups.setdefault((run.selected_on, run.split), []).append(run.looks)
    told = []
    for (chosen, split), looks in sorted(groups.items()):
        known = [count for count in looks if count]
        among = ""
        if known:
            least, most = min(known), max(known)
            span = str(least) if least == most else f"{least} to {most}"
            among = f" among {span} evaluations"
        said = (
            f"{len(looks)} runs: the prompt was chosen{among} on {chosen} "
            f"rows, its score is that on {split} rows"
        )
        if chosen == split:
            said += (
                ", the same ones: it is above what new rows would show, the "
                "more so the more evaluations there are (--select_on=held_out "
                "reports on rows that chose nothing)"
            )
        told.append(f"{said}.")
    return told


def _place(run: DoneRun | Excluded) -> tuple[str, str]:
    return run.backbone, run.target
