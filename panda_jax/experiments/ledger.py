"""A grid's folder: which runs are done, which failed, and how it goes on."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import traceback
from collections.abc import Iterable
from typing import Any

from panda_jax import ownership, run_folder, runs
from panda_jax.claims import LOCK, clock
from panda_jax.errors import UserError
from panda_jax.experiments.planned import STAGES, Group, Plan, Planned
from panda_jax.files import PathLike, read_json, write_json

FAILED = "failed.json"


class Ledger:
    """What is known of a plan's runs, from the files that they leave.

    Args:
      plan: the runs.
      out_dir: the grid's folder.
      retry_failed: whether runs that have failed so far count as left to do.
    """

    def __init__(
        self, plan: Plan, out_dir: PathLike, *, retry_failed: bool = False
    ) -> None:
        self.plan = plan
        self.out = pathlib.Path(out_dir)
        self.failures: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._old: dict[str, dict[str, Any]] = {}
        for run in plan.runs if retry_failed else ():
            failure = self._failure(run)
            if failure is not None:
                self._old[run.id] = failure
        self.look(plan.runs)

    def _failure(self, run: Planned) -> dict[str, Any] | None:
        """What its failure file says, if it has one."""
        path = self.out / run.folder / FAILED
        if not path.exists():
            return None
        return read_json(path, what="record of a failed run")

    def look(self, some: Iterable[Planned]) -> None:
        """Reads anew what became of the runs that are left to do."""
        for run in some:
            if self.state(run) != "todo":
                continue
            result = runs.read_result(self.out / run.folder)
            if result is not None:
                self._seconds[run.id] = _seconds(result.get("seconds"))
                continue
            failure = self._failure(run)
            if failure is not None and failure != self._old.get(run.id):
                self.failures[run.id] = str(failure.get("error"))

    def look_again(self, some: Iterable[Planned]) -> None:
        """Reads anew runs that had failed: another may have tried again."""
        some = list(some)
        for run in some:
            self.failures.pop(run.id, None)
        self.look(some)

    def fetch(self, some: Iterable[Planned]) -> None:
        """Copies what is done already where another grid would have it.

        Only for who has claimed the runs. The result comes last, as ever.
        """
        some = [run for run in some if self.state(run) == "todo"]
        for run in some:
            there, here = self.out / run.elsewhere, self.out / run.folder
            result = runs.read_result(there)
            if result is not None:
                but = shutil.ignore_patterns(
                    "result.json", ownership.LISTING, LOCK
                )
                with ownership.writing(here, "train") as new:
                    shutil.copytree(there, new, ignore=but, dirs_exist_ok=True)
                with ownership.writing(here, "train") as new:
                    write_json(new / "result.json", result)
        self.look(some)

    def state(self, run: Planned) -> str:
        """`done`, `failed` or `todo`, when last looked at."""
        if run.id in self._seconds:
            return "done"
        return "failed" if run.id in self.failures else "todo"

    def left(self, group: Group) -> list[Planned]:
        """The runs of a fleet that are left to do."""
        return [run for run in group.runs if self.state(run) == "todo"]

    def needed(self, run: Planned) -> list[Planned]:
        """The runs that a run needs."""
        return [self.plan.by_id[id_] for id_ in run.needs.values()]

    def begin_again(self, some: Iterable[Planned]) -> None:
        """Removes what runs left that failed before."""
        for run in [run for run in some if self._old.pop(run.id, None)]:
            # First: a kill in between leaves no failure to go on from.
            self.drop_checkpoints(run.fleet)
            run_folder.clear(self.out / run.folder)
            (self.out / run.folder / FAILED).unlink(missing_ok=True)

    def fail(self, run: Planned, error: BaseException) -> None:
        """Records why a run has no result."""
        what = str(error)
        trace = None
        if not isinstance(error, UserError):
            what = f"{type(error).__name__}: {what}"
            trace = "".join(traceback.format_exception(error))
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / FAILED,
            {
                "run_id": run.name,
                "settings": {
                    **dataclasses.asdict(run.run),
                    "source": run.source,
                },
                "needs": dict(run.needs),
                "error": what,
                "when": clock(),
                "traceback": trace,
            },
        )
        self.failures[run.id] = what

    def counts(self) -> dict[str, int]:
        """How many runs there are, are done, and have failed."""
        return {
            "total": len(self.plan.runs),
            "done": len(self._seconds),
            "failed": len(self.failures),
        }

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from the runs that are done; None without any.

        A fleet's runs all have its time. A row to learn from takes what those
        of its stage took, or of any stage where none is done; where a run has
        all rows of its task, whose number is not known here, a run does.

        Args:
          workers: how many are at work.
        """
        counted = all(run.rows for run in self.plan.runs)
        spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        done: dict[str, int] = dict.fromkeys(STAGES, 0)
        left = dict(done)
        for group in self.plan.groups:
            took = [0.0]
            for run in group.runs:
                work = (counted and run.rows) or 1
                if run.id in self._seconds:
                    took.append(self._seconds[run.id])
                    done[group.stage] += work
                elif self.state(run) == "todo":
                    left[group.stage] += work
            spent[group.stage] += max(took)
        if not any(done.values()):
            return None
        pace = sum(spent.values()) / sum(done.values())
        total = sum(
            work * (spent[stage] / done[stage] if done[stage] else pace)
            for stage, work in left.items()
        )
        return total / max(1, workers)

    def write_plan(self) -> None:
        """Writes `grid.json`."""
        write_json(
            self.out / "grid.json",
            {"runs": [described(run) for run in self.plan.runs]},
        )

    def link_prompts(self, some: Iterable[Planned]) -> None:
        """Keeps the banks: links by task to the prompts of runs that are done.

        Not before: a run has a prompt from its first evaluation on, and a
        better one later, or a failure.
        """
        for run in some:
            for role in {"source", "prompt"} & set(run.roles):
                link = self.out / run.bank(role)
                target = self.out / run.folder / "prompt"
                path = os.path.relpath(target, link.parent)
                done = self.state(run) == "done"
                if self._is_stale(link, path if done else None):
                    link.unlink(missing_ok=True)
                if done:
                    link.parent.mkdir(parents=True, exist_ok=True)
                    # There already, or no links on this file system.
                    with contextlib.suppress(OSError):
                        link.symlink_to(path, target_is_directory=True)

    def _is_stale(self, link: pathlib.Path, path: str | None) -> bool:
        """Whether a link is one of this grid's runs, and not where it should.

        One that leads elsewhere is the user's.
        """
        if not link.is_symlink() or os.readlink(link) == path:
            return False
        leads = os.path.normpath(link.parent / os.readlink(link))
        return pathlib.Path(leads).is_relative_to(
            os.path.normpath(self.out / "runs")
        )

    def write_progress(self, doing: Iterable[dict[str, Any]]) -> None:
        """Writes `progress.json`.

        Args:
          doing: what is said by those at work.
        """
        shown = [
            {
                name: said.get(name)
                for name in ("doing", "host", "pid", "since", "at")
            }
            for said in doing
        ]
        seconds = self.seconds_left(len(shown))
        write_json(
            self.out / "progress.json",
            {
                **self.counts(),
                "seconds_left": seconds and round(seconds),
                "at": clock(),
                "doing": shown,
            },
        )

    def log(self, owner: str, event: str, **values: Any) -> None:
        """Appends a line to this process's own log, `log/OWNER.jsonl`."""
        path = self.out / "log" / f"{owner}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            record = {"at": clock(), "event": event, **values}
            file.write(json.dumps(record) + "\n")

    def drop_checkpoints(self, fleet: str) -> None:
        """Removes a fleet's checkpoints, if it has any."""
        folder = self.out / "runs" / fleet / "checkpoints"
        # Unless another is as quick, what is left would be gone on from.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def own_checkpoints(self, fleet: str, lanes: list[str]) -> None:
        """Removes checkpoints that lack one of the lanes; notes the lanes.

        Args:
          fleet: its name.
          lanes: that are about to be trained.
        """
        note = self.out / "runs" / fleet / "fleet.json"
        known = read_json(note).get("runs") if note.exists() else []
        if not isinstance(known, list) or any(x not in known for x in lanes):
            self.drop_checkpoints(fleet)
        if lanes != known:
            write_json(note, {"runs": lanes})


def _seconds(said: Any) -> float:
    """What a result says that it took; 0 where it says nothing."""
    known = isinstance(said, int | float) and 0 <= said < math.inf
    return float(min(said, 1e12)) if known else 0.0


def described(run: Planned) -> dict[str, Any]:
    """A run as `grid.json` has it."""
    return {
        "id": run.id,
        "name": run.name,
        "folder": run.folder,
        "fleet": run.fleet,
        "roles": list(run.roles),
        "backbone": run.run.backbone,
        "task": run.run.task,
        "kind": run.kind,
        "source": run.source,
        "seed": run.run.seed,
        "needs": dict(run.needs),
    }
