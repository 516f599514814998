"""The result files of many runs: what counts, and by name what does not."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Set

from panda_jax.errors import UserError
from panda_jax.experiments.agreement import one_metric
from panda_jax.experiments.outcomes import DoneRun, Excluded
from panda_jax.experiments.run_folders import (
    GRID,
    MARKS,
    VALUES,
    listed,
    read_folder,
)
from panda_jax.experiments.variants import settle
from panda_jax.files import PathLike

# Never runs, and checkpoints are thousands of files.
_NO_RUNS = ("checkpoints", "model", "prompt")


@dataclasses.dataclass(frozen=True)
class Results:
    """All runs below a folder.

    Attributes:
      runs: those that count, in order of their folders.
      left_out: those that do not.
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
            grids[name], own = listed(folder, name)
            targets |= own
        if not any((folder / mark).exists() for mark in MARKS):
            continue
        one = read_folder(folder, name, nested=nested, value=value)
        below, run = _on_list(name, grids)
        begun.add(name)
        if below and not run:
            left.append(_not_listed(one))
        elif isinstance(one, DoneRun):
            found.append(one)
        elif run and run.folder == name:
            # Also of files that cannot be read the list knows whose they are.
            left.append(run._replace(status=one.status, reason=one.reason))
        else:
            left.append(one)
    left += [
        run
        for grid in grids.values()
        for run in grid.values()
        if run.folder not in begun
    ]
    if not found and not left:
        raise UserError(
            f"No run below {str(root)!r}: expected folders with run.json and "
            "result.json, as panda-jax train and grid leave them."
        )
    found, unlike = one_metric(found)
    runs, others = settle(found)
    return Results(
        tuple(runs), tuple(sorted([*left, *unlike, *others])), value, targets
    )


def _on_list(
    name: str, grids: Mapping[str, Mapping[str, Excluded]]
) -> tuple[bool, Excluded | None]:
    """Whether a folder lies below a grid, and what that lists it as.

    What a run made for itself is on the list with that run.
    """
    places = [name, *map(str, pathlib.PurePosixPath(name).parents)]
    grid = next((grids[place] for place in places if place in grids), None)
    if grid is None:
        return False, None
    return True, next((grid[p] for p in places if p in grid), None)


def _not_listed(run: DoneRun | Excluded) -> Excluded:
    status, reason = "not listed", "not in the grid's present list"
    if isinstance(run, DoneRun):
        return run.left_out(status, reason)
    return run._replace(status=status, reason=reason)


def _folders(root: pathlib.Path) -> list[tuple[pathlib.Path, bool]]:
    """Folders of runs and grids in order, and whether in another run's.

    Raises:
      UserError: a folder that cannot be looked into, so that runs would be
        left out unseen.
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
