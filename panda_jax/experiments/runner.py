"""Runs a grid: what has no result yet, by need, fleet by fleet.

Any number of processes may do so at once, on any machines that share the
folder: each takes the next fleet that nobody has claimed.
"""

import contextlib
import dataclasses
import os
import pathlib

from panda_jax import distributed, ownership
from panda_jax.backbone import check_here
from panda_jax.claims import STALE_SECONDS, Claims, parse_shard
from panda_jax.errors import UserError
from panda_jax.experiments.expansion import expand
from panda_jax.experiments.grid import Grid, words_of
from panda_jax.experiments.ledger import Ledger
from panda_jax.experiments.run_folders import GRID, listed
from panda_jax.experiments.worker import Summary, Worker
from panda_jax.files import PathLike, read_json
from panda_jax.sharding import Partitioner

# Between looks at what others are at work on.
POLL_SECONDS = 10.0
# What workers rewrite in a grid's folder.
_FILES = (GRID, "progress.json")


def run_grid(
    grid: Grid,
    out_dir: PathLike,
    *,
    shard: str | None = None,
    retry_failed: bool = False,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    quiet: bool = False,
    partitioner: Partitioner | None = None,
    stale_seconds: float = STALE_SECONDS,
    poll_seconds: float = POLL_SECONDS,
    overwrite: bool = False,
) -> Summary:
    """Makes every run of the grid that has no result yet.

    Returns when each has a result or a recorded failure, those that other
    processes work on included. Killed at any moment and started again it goes
    on from the last checkpoint.

    Args:
      grid: what to run.
      out_dir: where: `runs/FLEET/RUN/`, `grid.json`, `progress.json`,
        `claims/`, `log/`, and links to prompts in `sources/` and `targets/`.
      shard: `i/n`: begin with the i-th of n parts, which keeps n processes out
        of each other's way. Each goes on with what the others leave.
      retry_failed: try again what has failed before.
      data_dir: as in `train`, as are `tfds_data_dir` and `partitioner`.
      tfds_data_dir: of TFDS.
      quiet: show no progress.
      partitioner: how devices are shared out.
      stale_seconds: after which a silent process's work is taken over.
      poll_seconds: between looks at what others are at work on.
      overwrite: files in the way are replaced, whoever wrote them.

    Raises:
      UserError: settings that no run can have, a shard that is none, or a
        folder or backbone that is not on this machine: every run that it tried
        would fail, for all who share the folder. Or files in the way that no
        grid wrote.
      StorageError: no room for a checkpoint, nor for that of another run.
      InterruptedRun: asked to end by SIGTERM, and saved.
    """
    index, count = parse_shard(shard)
    out = pathlib.Path(out_dir)
    plan = expand(_as_spelled(grid, out)).named_in(out)
    ledger = Ledger(plan, out, retry_failed=retry_failed)
    _check_here(ledger, data_dir)
    if distributed.is_main():
        _claim_files(out, overwrite=overwrite)
    worker = Worker(
        ledger,
        Claims(out / "claims", stale=stale_seconds),
        order=plan.dealt(index, count),
        poll=poll_seconds,
        quiet=quiet,
        options={
            "data_dir": data_dir,
            "tfds_data_dir": tfds_data_dir,
            "partitioner": partitioner,
            "quiet": quiet,
        },
    )
    return worker.run()


def _as_spelled(grid: Grid, out: pathlib.Path) -> Grid:
    """The grid with its backbones' folders as the folder's own list has them.

    Ids are of names, and another path to a folder makes no other backbone.
    """
    known = set()
    if (out / GRID).exists():
        with contextlib.suppress(UserError):  # which `_claim_files` tells of
            runs = read_json(out / GRID).get("runs")
            for run in runs if isinstance(runs, list) else ():
                name = run.get("backbone") if type(run) is dict else None
                known.add(str(name))
    said = {}
    for name in set(grid.backbones) - known:
        if os.path.isdir(name):
            same = [x for x in known if os.path.isdir(x)]
            same = [x for x in same if os.path.samefile(x, name)]
            said |= dict.fromkeys([name], same[0]) if same else {}
    if not said:
        return grid
    return dataclasses.replace(
        grid,
        backbones=tuple(said.get(name, name) for name in grid.backbones),
        overrides=grid.overrides
        and {
            " ".join(said.get(word, word) for word in words_of(key)): value
            for key, value in grid.overrides.items()
        },
    )


def _claim_files(out: pathlib.Path, *, overwrite: bool) -> None:
    """Makes sure that the files which all workers write are a grid's.

    Raises:
      UserError: one of them is there and is not.
    """
    if (out / GRID).exists():
        # Of release 0.1, if it reads as one.
        with contextlib.suppress(UserError):
            listed(out, ".")
            ownership.adopt(out, "grid", (), grows=_FILES)
    with ownership.writing(out, "grid", overwrite=overwrite, grows=_FILES):
        pass


def _check_here(ledger: Ledger, data_dir: PathLike | None) -> None:
    """Refuses to begin where all that is left of a backbone would fail."""
    left = [run for run in ledger.plan.runs if ledger.state(run) == "todo"]
    for name in dict.fromkeys(run.run.backbone for run in left):
        check_here(name)
    where = data_dir or os.environ.get("PANDA_DATA_DIR")
    if left and where and not os.path.isdir(where):
        raise UserError(
            f"The data_dir {str(where)!r} is no folder on this machine. Give "
            "the folder of the distribution files (--data_dir=DATA, or "
            "PANDA_DATA_DIR)."
        )
