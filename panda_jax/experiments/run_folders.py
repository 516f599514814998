"""One run folder's files, read with distrust."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from panda_jax import identity, registry
from panda_jax.errors import UserError
from panda_jax.experiments.outcomes import LABELS, DoneRun, Excluded
from panda_jax.files import read_json

# The scores of a result file that a report may be of.
VALUES = ("best", "final", "first_epoch")
# Any of them makes a folder that of a run.
MARKS = ("run.json", "result.json", "failed.json")
# A grid's list of its runs.
GRID = "grid.json"
# A folder of this name holds the runs that made source prompts.
SOURCES = "sources"
UNKNOWN = "(unknown)"
# What a grid's list says of each run in words.
_LISTED = ("kind", "backbone", "task", "folder", "name")


def read_folder(
    folder: pathlib.Path, name: str, *, nested: bool, value: str
) -> DoneRun | Excluded:
    """What became of a run.

    Args:
      folder: of the run; has one of `MARKS`.
      name: of the folder below that of all, with `/`.
      nested: whether it lies in another run's.
      value: one of `VALUES`.
    """
    path = folder
    try:
        path = folder / "run.json"
        about = read_json(path) if path.exists() else {}
        settings = _mapping(about, "settings")
        path = folder / "result.json"
        if path.exists():
            result = read_json(path)
            _check_bound(folder, result, about, name)
            return _result(result, about, name, nested=nested, value=value)
        path = folder / "failed.json"
        if path.exists():
            failure = read_json(path)
            settings = {
                "source": failure.get("source"),
                **settings,
                **_mapping(failure, "settings"),
            }
            return Excluded(
                "failed",
                _text(failure.get("run_id") or about.get("run_id") or name),
                name,
                _text(failure.get("error") or "no reason is given"),
                **_about(settings, about, name),
            )
        return Excluded(
            "unfinished",
            _text(about.get("run_id") or name),
            name,
            "it has neither result.json nor failed.json",
            **_about(settings, about, name),
        )
    except UserError as error:
        # By name alone: where the files lie is no part of the results.
        reason = str(error).replace(repr(str(path)), f"{name}/{path.name}")
        return Excluded("unreadable", name, name, reason)


def _check_bound(
    folder: pathlib.Path,
    result: dict[str, Any],
    about: dict[str, Any],
    name: str,
) -> None:
    """Refuses a result that the run's other files are not of.

    A result file may stand alone: it says itself what run it is of.
    """
    if about:
        identity.check_result(result, about, where=name)
    prompt = folder / "prompt" / "panda.json"
    if prompt.exists():
        identity.check_prompt(result, read_json(prompt), where=name)


def listed(
    folder: pathlib.Path, name: str
) -> tuple[dict[str, Excluded], set[tuple[str, str]]]:
    """A grid's present list of its runs.

    Args:
      folder: the grid's.
      name: of it below the folder of all, with `/`; `.` for that itself.

    Returns:
      Run folder below that of all -> what the list says of the run, as one
      that has not begun; and the (backbone, task) of those that are more than
      sources: its targets.

    Raises:
      UserError: the list is not what a grid writes.
    """
    found: dict[str, Excluded] = {}
    targets: set[tuple[str, str]] = set()
    try:
        for run in read_json(folder / GRID)["runs"]:
            if not all(isinstance(run[name], str) for name in _LISTED):
                raise TypeError
            kind, _, recipe = run["kind"].partition("-")
            kind, recipe = _named(kind, recipe)
            if run["roles"] == ["source"]:
                kind = "source"
            else:
                targets.add((run["backbone"], run["task"]))
            place = (pathlib.PurePosixPath(name) / run["folder"]).as_posix()
            found[place] = Excluded(
                "not begun",
                run["name"],
                place,
                "no file of it is there yet",
                run["backbone"],
                LABELS.get(kind, f"PANDA {recipe or 'paper'}"),
                _text(run["source"] or ""),
                run["task"],
                str(run["seed"]),
            )
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"The file {str(folder / GRID)!r} is no list of a grid's runs: run "
            "panda-jax grid again, or remove it."
        ) from None
    return found, targets


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
        floor=100.0 * _number(result.get("floor")),
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
    kind, recipe = _named(method, result.get("recipe"))
    if method == "prompt" and _makes_source(folder):
        kind = "source"
    if method == "panda":
        recipe = _text(recipe or "")
        if result.get("kd_weight") != 0 or result.get("transfer_metric"):
            return "panda", f"PANDA {recipe}".strip()
        kind = "control"
    if kind not in LABELS:
        raise UserError(
            f"{folder}/result.json: method is {method!r}, expected prompt, "
            "pot, panda or finetune."
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
    kind, recipe = _named(settings.get("method"), settings.get("recipe"))
    kind = _text(kind or "")
    if kind == "prompt" and _makes_source(folder):
        kind = "source"
    if kind == "panda" and settings.get("kd_weight") == 0:
        kind = "control"
    label = LABELS.get(kind, "")
    if kind == "panda":
        label = f"PANDA {_text(recipe or '')}".strip()
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


def _named(method: Any, recipe: Any) -> tuple[Any, Any]:
    """A method as tables name its kind, and a recipe as this release does."""
    kind = registry.former({"method": method})["method"]
    return kind, registry.present({"recipe": recipe})["recipe"]


def _makes_source(folder: str) -> bool:
    return SOURCES in pathlib.PurePosixPath(folder).parts


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
