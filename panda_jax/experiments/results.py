"""The result files of many runs: what counts, and by name what does not."""

import dataclasses
import os
import pathlib

from panda_jax.errors import UserError
from panda_jax.experiments.outcomes import DoneRun, Excluded
from panda_jax.experiments.run_folders import (
    GRID,
    MARKS,
    VALUES,
    not_begun,
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
    """

    runs: tuple[DoneRun, ...]
    left_out: tuple[Excluded, ...]
    value: str


def read_results(runs_dir: PathLike, *, value: str = "best") -> Results:
    """Reads every run folder at any depth.

    A folder with `result.json` is a run that is done, one with `failed.json`
    alone failed, one with neither is unfinished. Runs that a run made for
    itself (in `teacher`, `target_prompt`) count like any other, but once. A
    grid's list also says which have not begun.

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
    for folder, nested in _folders(root):
        name = folder.relative_to(root).as_posix()
        if (folder / GRID).exists():
            left += not_begun(folder, name)
        if not any((folder / mark).exists() for mark in MARKS):
            continue
        one = read_folder(folder, name, nested=nested, value=value)
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
    return Results(tuple(runs), tuple(sorted([*left, *others])), value)


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
        # In place: os.walk goes where this says, in this order.
        folders[:] = sorted(name for name in folders if name not in skipped)
    return found
