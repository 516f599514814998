"""The result files of many runs: what counts, and by name what does not."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from panda_jax.errors import UserError
from panda_jax.experiments.variants import DoneRun, settle
from panda_jax.files import PathLike, read_json

# The scores of a result file that a report may be of.
VALUES = ("best", "final", "first_epoch")
# Any of them makes a folder that of a run.
_MARKS = ("run.json", "result.json", "failed.json")
# Never runs, and checkpoints are thousands of files.
_NO_RUNS = ("checkpoints", "model", "prompt")
# A folder of this name holds the runs that made source prompts.
SOURCES = "sources"
UNKNOWN = "(unknown)"

LABELS = {
    "model": "model-tuning",
    "prompt": "prompt-tuning",
    "pot": "PoT",
    "control": "PANDA weight 0",
    "source": "source prompt",
}


class LeftOut(NamedTuple):
    """A run that no average holds.

    Attributes:
      status: `failed` (the run says why), `unfinished`, `unreadable`, `double`
        (another folder of the same run counts) or `other` (another run of the
        same cell counts).
      run_id: its name; its folder where it says none.
      folder: below the folder of all, with `/`.
      reason: in words.
      backbone: of the run, as are `label` (the row it would be in), `source`,
        `target` and `seed`; "" where it does not say.
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


@dataclasses.dataclass(frozen=True)
class Results:
    """All runs below a folder.

    Attributes:
      runs: those that count, in order of their folders.
      left_out: those that do not.
      value: which score was read: one of `VALUES`.
    """

    runs: tuple[DoneRun, ...]
    left_out: tuple[LeftOut, ...]
    value: str


def read_results(runs_dir: PathLike, *, value: str = "best") -> Results:
    """Reads every run folder at any depth.

    A folder with `result.json` is a run that is done, one with `failed.json`
    alone failed, one with neither is unfinished. Runs that a run made for
    itself (in `teacher`, `target_prompt`) count like any other, but once.

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
    left: list[LeftOut] = []
    for folder, nested in _folders(root):
        name = folder.relative_to(root).as_posix()
        one = _read(folder, name, nested=nested, value=value)
        if isinstance(one, DoneRun):
            found.append(one)
        else:
            left.append(one)
    if not found and not left:
        raise UserError(
            f"No run below {str(root)!r}: expected folders with run.json and "
            "result.json, as panda-jax train and grid leave them."
        )
    runs, others = settle(found)
    left += [
        LeftOut(status, **_named(run), reason=reason)
        for status, run, reason in others
    ]
    return Results(tuple(runs), tuple(sorted(left)), value)


def _folders(root: pathlib.Path) -> list[tuple[pathlib.Path, bool]]:
    """DoneRun folders in order, each with whether it lies in another run's."""
    found: list[tuple[pathlib.Path, bool]] = []
    inside: set[str] = set()
    for place, folders, files in os.walk(root):
        nested = os.path.dirname(place) in inside
        is_run = any(mark in files for mark in _MARKS)
        if is_run:
            found.append((pathlib.Path(place), nested))
        skipped = _NO_RUNS[:1]
        if is_run or nested:
            inside.add(place)
            skipped = _NO_RUNS
        # In place: os.walk goes where this says, in this order.
        folders[:] = sorted(name for name in folders if name not in skipped)
    return found


def _read(
    folder: pathlib.Path, name: str, *, nested: bool, value: str
) -> DoneRun | LeftOut:
    path = folder
    try:
        path = folder / "run.json"
        about = read_json(path) if path.exists() else {}
        settings = _mapping(about, "settings")
        path = folder / "result.json"
        if path.exists():
            return _result(
                read_json(path), about, name, nested=nested, value=value
            )
        path = folder / "failed.json"
        if path.exists():
            failure = read_json(path)
            settings = {
                "source": failure.get("source"),
                **settings,
                **_mapping(failure, "settings"),
            }
            return LeftOut(
                "failed",
                _text(failure.get("run_id") or about.get("run_id") or name),
                name,
                _text(failure.get("error") or "no reason is given"),
                **_about(settings, about, name),
            )
        return LeftOut(
            "unfinished",
            _text(about.get("run_id") or name),
            name,
            "it has neither result.json nor failed.json",
            **_about(settings, about, name),
        )
    except UserError as error:
        # By name alone: where the files lie is no part of the results.
        reason = str(error).replace(repr(str(path)), f"{name}/{path.name}")
        return LeftOut("unreadable", name, name, reason)


def _result(
    result: dict[str, Any],
    about: dict[str, Any],
    name: str,
    *,
    nested: bool,
    value: str,
) -> DoneRun:
    """A run from what its files hold.

    Raises:
      UserError: something is missing or of another kind.
    """
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
        settings=_mapping(about, "settings"),
        needs={**_mapping(about, "needs"), **_mapping(about, "fingerprints")},
    )


def kind_and_label(result: Mapping[str, Any], folder: str) -> tuple[str, str]:
    """What a run is in a table, and the name of its rows.

    PANDA's weight-0 control has a weight of 0 that was set: one that is 0
    because no similarity was found is PANDA all the same, and names the metric.

    Args:
      result: the content of a result file.
      folder: of the run.

    Returns:
      `model`, `prompt`, `source`, `pot`, `panda` or `control`; and such as
      "PANDA paper".

    Raises:
      UserError: another method.
    """
    method = result["method"]
    kind = method
    if method == "prompt" and _makes_source(folder):
        kind = "source"
    if method == "panda":
        recipe = _text(result.get("recipe") or "")
        if result.get("kd_weight") != 0 or result.get("transfer_metric"):
            return "panda", f"PANDA {recipe}".strip()
        kind = "control"
    if kind not in LABELS:
        raise UserError(
            f"{folder}/result.json: method is {method!r}, expected prompt, "
            "pot, panda or model."
        )
    return kind, LABELS[kind]


def _source(kind: str, source: Any) -> str:
    if kind not in ("pot", "panda"):
        return ""
    return _text(source or UNKNOWN)


def _about(
    settings: dict[str, Any], about: Mapping[str, Any], folder: str
) -> dict[str, str]:
    """What a run without a result says of itself."""
    kind = _text(settings.get("method") or "")
    if kind == "prompt" and _makes_source(folder):
        kind = "source"
    if kind == "panda" and settings.get("kd_weight") == 0:
        kind = "control"
    label = LABELS.get(kind, "")
    if kind == "panda":
        label = f"PANDA {_text(settings.get('recipe') or '')}".strip()
    needed = _text(_mapping(about, "needs").get("source") or "")
    source = needed.partition("@")[0] or _text(settings.get("source") or "")
    seed = settings.get("seed")
    return {
        "backbone": _text(settings.get("backbone") or ""),
        "label": label,
        # A source may be given as the folder of its prompt.
        "source": _source(kind, pathlib.PurePath(source).name),
        "target": _text(settings.get("task") or ""),
        "seed": "" if seed is None else _text(seed),
    }


def _makes_source(folder: str) -> bool:
    return SOURCES in pathlib.PurePosixPath(folder).parts


def _named(run: DoneRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "folder": run.folder,
        "backbone": run.backbone,
        "label": run.label,
        "source": run.source,
        "target": run.target,
        "seed": str(run.seed),
    }


def _number(value: Any) -> float:
    """A number as it is, NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def _mapping(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
