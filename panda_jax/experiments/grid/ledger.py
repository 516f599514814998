"""A grid's folder: which runs are done, which failed, and how it goes on.

The truth is in the run folders. Endings save looking there: each time a fleet
ends, whoever had claimed it leaves a file under a name that nobody else takes.
One listing shows what is new, and what is known is not read again. Nothing is
appended to or renamed over, so that a bucket will do. Where an ending is
missing (a kill came before it) the run folders are looked at instead.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from panda_jax.errors import UserError
from panda_jax.experiments.grid import grid
from panda_jax.experiments.grid.grid import STAGES, Group, Plan, Planned
from panda_jax.io import ownership
from panda_jax.io.claims import LOCK, clock
from panda_jax.io.files import (
    PathLike,
    atomic_file,
    read_json,
    remove_abandoned,
    write_json,
)
from panda_jax.training import identity, run_folder
from panda_jax.training.run_folder import FAILED


@dataclasses.dataclass(frozen=True)
class Ending:
    """A fleet by lane: seconds of what is done, and why others failed."""

    fleet: str
    done: dict[str, float]
    failed: dict[str, str]


class Endings:
    """The endings in a folder that all share, as one process knows them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._files: dict[str, list[str]] = {}

    def news(self) -> list[Ending]:
        """Those that were not there, or not whole, the last time."""
        names = listed(self._folder) - self._known
        on_their_way = {name for name in names if name[0] == "."}
        if on_their_way:  # for a moment, unless who wrote them was killed
            remove_abandoned(self._folder, suffix=".json")
        read = {
            n: _read(self._folder / n) for n in sorted(names - on_their_way)
        }
        found = {name: ending for name, ending in read.items() if ending}
        for name, ending in found.items():
            self._know(name, ending.fleet)
        return list(found.values())

    def _know(self, name: str, fleet: str) -> None:
        self._known.add(name)
        self._files.setdefault(fleet, []).append(name)

    def tell(self, ending: Ending) -> None:
        """Leaves word of a fleet for the others."""
        name = f"{ending.fleet}.{secrets.token_hex(6)}.json"
        # What a power cut takes is read from the run folders.
        with atomic_file(self._folder / name, durable=False) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(ending)))
        self._know(name, ending.fleet)

    def take_back(self, fleet: str) -> None:
        """Removes what was told of a fleet, since it is so no longer."""
        for name in self._files.pop(fleet, []):
            (self._folder / name).unlink(missing_ok=True)


def _read(path: pathlib.Path) -> Ending | None:
    """None where it is no ending, or not yet."""
    try:
        said = read_json(path)
    except UserError:
        return None
    fleet, done, failed = (said.get(x) for x in ("fleet", "done", "failed"))
    if not (isinstance(fleet, str) and isinstance(done, dict)):
        return None
    if not isinstance(failed, dict):
        return None
    seconds = {lane: known_seconds(value) for lane, value in done.items()}
    return Ending(fleet, seconds, {n: str(why) for n, why in failed.items()})


def known_seconds(said: Any) -> float:
    """What a result says that it took; 0 where it says nothing."""
    known = isinstance(said, int | float) and 0 <= said < float("inf")
    return float(min(said, 1e12)) if known else 0.0


def listed(folder: pathlib.Path) -> set[str]:
    """The names in a folder; none where there is no such folder."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


class Ledger:
    """What is known of a plan's runs, from the files that they leave.

    A start lists the folder of each fleet that has begun, and reads the files
    of runs that no ending calls done. From then on `hear` reads what is new,
    and `claimed` the folder of the fleet that is about to be trained. With
    `retry_failed` runs that have failed so far count as left to do.

    Attributes:
      failures: id -> why a run has no result.
      open: names of the fleets that have not ended, as far as is known.
    """

    def __init__(
        self, plan: Plan, out_dir: PathLike, *, retry_failed: bool = False
    ) -> None:
        self.plan = plan
        self.out = pathlib.Path(out_dir)
        self.failures: dict[str, str] = {}
        self.open = {group.name for group in plan.groups}
        self._groups = {group.name: group for group in plan.groups}
        self._seconds: dict[str, float] = {}
        self._old: dict[str, dict[str, Any]] = {}
        # Whose end nobody has told of: a kill may have left files there.
        self._untold: set[str] = set()
        self._endings = Endings(self.out / "ended")
        remove_abandoned(self.out, suffix=".json")
        self._logged = False
        self._start(retry_failed=retry_failed)

    def _start(self, *, retry_failed: bool) -> None:
        told: dict[str, Ending] = {}
        for ending in self._endings.news():
            known = told.setdefault(ending.fleet, Ending(ending.fleet, {}, {}))
            known.done.update(ending.done)
            known.failed.update(ending.failed)
        begun = listed(self.out / "runs")
        unread = []
        for group in self.plan.groups:
            if group.name not in begun:
                continue
            there = self._lanes(group.name)
            said = told.get(group.name, Ending(group.name, {}, {}))
            for run in (run for run in group.runs if run.lane in there):
                if run.lane in said.done:
                    self._seconds[run.id] = said.done[run.lane]
                    unread.append(run)
                    continue
                failure = self._failure(run) if retry_failed else None
                if failure is not None:
                    self._old[run.id] = failure
                self._read(run)
            ended = {*said.done, *said.failed} >= {r.lane for r in group.runs}
            if ended and not self.left(group) and "checkpoints" not in there:
                self.open.discard(group.name)
        if not any(map(self.left, self.plan.groups)):
            # Who starts what has ended may have removed results on purpose.
            for run in unread:
                if not (self.out / run.folder / "result.json").exists():
                    del self._seconds[run.id]
                    self.open.add(run.fleet)

    def _lanes(self, fleet: str) -> set[str]:
        """The lanes of a fleet that have a folder; and its other files."""
        folder = self.out / "runs" / fleet
        names = listed(folder)
        if "sources" in names:
            names |= {f"sources/{name}" for name in listed(folder / "sources")}
        return names

    def _failure(self, run: Planned) -> dict[str, Any] | None:
        """What its failure file says, if it has one."""
        path = self.out / run.folder / FAILED
        what = "record of a failed run"
        return read_json(path, what=what) if path.exists() else None

    def _read(self, run: Planned) -> None:
        """Reads what became of a run that is left to do."""
        folder = self.out / run.folder
        result = identity.read_result(folder)
        if result is not None:
            identity.check_planned(folder, run.run, result)
            self._seconds[run.id] = known_seconds(result.get("seconds"))
            self._untold.add(run.id)
            return
        failure = self._failure(run)
        if failure is not None and failure != self._old.get(run.id):
            self.failures[run.id] = str(failure.get("error"))

    def hear(self) -> None:
        """Learns which fleets others have ended since the last time."""
        for ending in self._endings.news():
            group = self._groups.get(ending.fleet)
            if group is None:  # of another grid in this folder
                continue
            for run in group.runs:
                if run.lane in ending.done:
                    self.failures.pop(run.id, None)
                    self._seconds[run.id] = ending.done[run.lane]
                # A failure that is to be tried again may be the old one.
                elif (
                    run.lane in ending.failed
                    and run.id not in self._old
                    and self.state(run) == "todo"
                ):
                    self.failures[run.id] = ending.failed[run.lane]
            if not self.left(group):
                self.open.discard(group.name)

    def look_again(self, runs: Iterable[Planned]) -> None:
        """Reads anew those that had failed: another may have tried again."""
        for run in runs:
            if self.failures.pop(run.id, None) is not None:
                self._read(run)

    def claimed(self, group: Group) -> None:
        """Reads what is in the folder of a fleet; only for who has claimed it.

        Another may have made runs before the claim; those that are done where
        another grid would have them are copied.
        """
        for run in group.runs:
            self.failures.pop(run.id, None)
        if not self.left(group):
            return
        there = self._lanes(group.name)
        for run in self.left(group):
            if run.lane in there:
                self._read(run)
            if self.state(run) == "todo" and run.other_lane in there:
                self._fetch(run)
        if self.left(group):
            # Or a kill from here on would leave a lie.
            self._endings.take_back(group.name)

    def _fetch(self, run: Planned) -> None:
        """Copies a run from where another grid has it; the result last."""
        here = self.out / run.folder
        there = self.out / "runs" / run.fleet / run.other_lane
        result = identity.read_result(there)
        if result is not None:
            but = shutil.ignore_patterns("result.json", ownership.LISTING, LOCK)
            with ownership.writing(here, "train") as new:
                shutil.copytree(there, new, ignore=but, dirs_exist_ok=True)
            with ownership.writing(here, "train") as new:
                write_json(new / "result.json", result)
            self._read(run)

    def succeed(self, run: Planned, result: Mapping[str, Any]) -> None:
        """Notes the result that a run has just left."""
        self._seconds[run.id] = known_seconds(result.get("seconds"))

    def end(self, group: Group) -> None:
        """Keeps banks and room of a fleet, then tells the others of it.

        In this order: what was told needs no look for what a kill came before.
        """
        for run, link, path in self._links(group.runs):
            if self.state(run) == "done":
                self._lead(link, path)
        for run in group.runs:
            if run.id in self._untold:
                self._untold.discard(run.id)
                run_folder.end(self.out / run.folder)
        if not self.left(group):
            self.drop_checkpoints(group.name)
            self.open.discard(group.name)
        done, failed = self._seconds, self.failures
        took = {r.lane: done[r.id] for r in group.runs if r.id in done}
        why = {r.lane: failed[r.id] for r in group.runs if r.id in failed}
        self._endings.tell(Ending(group.name, took, why))

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
        failure = {
            "run_id": run.name,
            "settings": {**dataclasses.asdict(run.run), "source": run.source},
            "needs": dict(run.needs),
            "error": what,
            "when": clock(),
            "traceback": trace,
        }
        write_json(folder / FAILED, failure)
        self.failures[run.id] = what

    def counts(self) -> dict[str, int]:
        """How many runs there are, are done, and have failed."""
        done, failed = len(self._seconds), len(self.failures)
        return {"total": len(self.plan.runs), "done": done, "failed": failed}

    def seconds_left(self, workers: int) -> float | None:
        """An estimate from the runs that are done; None without any.

        A fleet's runs all have its time. A row to learn from takes what those
        of its stage took, or of any stage where none is done; where a run has
        all rows of its task, whose number is not known here, a run does.
        """
        counted = all(run.rows for run in self.plan.runs)
        spent: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        done, left = dict(spent), dict(spent)
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
        runs = [grid.described(run) for run in self.plan.runs]
        write_json(self.out / grid.GRID, {"runs": runs})

    def link_prompts(
        self, some: Iterable[Planned], *, checked: bool = False
    ) -> None:
        """Keeps the banks: links by task to the prompts of runs that are done.

        Not before: a better prompt may come, or a failure. With `checked`,
        links that are there lead where they should.
        """
        banks: dict[pathlib.Path, set[str]] = {}
        for run, link, path in self._links(some):
            if link.parent not in banks:
                banks[link.parent] = listed(link.parent)
            there = link.name in banks[link.parent]
            if self.state(run) == "done":
                if not (there and checked):
                    self._lead(link, path)
            elif there and self._is_of_grid(link, _leads_to(link)):
                link.unlink(missing_ok=True)

    def _links(
        self, some: Iterable[Planned]
    ) -> Iterator[tuple[Planned, pathlib.Path, str]]:
        """Runs with the links that banks have of them, and what these say."""
        for run in some:
            for role in {"source", "prompt"} & set(run.roles):
                link = self.out / run.bank(role)
                target = self.out / run.folder / "prompt"
                yield run, link, os.path.relpath(target, link.parent)

    def _lead(self, link: pathlib.Path, path: str) -> None:
        """Makes a link, or one of the grid's that leads elsewhere say this."""
        # A folder of that name, or no links on this file system.
        with contextlib.suppress(OSError):
            try:
                link.symlink_to(path, target_is_directory=True)
            except FileNotFoundError:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path, target_is_directory=True)
            except FileExistsError:
                now = _leads_to(link)
                if now != path and self._is_of_grid(link, now):
                    link.unlink(missing_ok=True)
                    link.symlink_to(path, target_is_directory=True)

    def _is_of_grid(self, link: pathlib.Path, path: str | None) -> bool:
        """Whether a link leads to one of this grid's runs; else the user's."""
        leads = os.path.normpath(link.parent / (path or ""))
        return path is not None and pathlib.Path(leads).is_relative_to(
            os.path.normpath(self.out / "runs")
        )

    def write_progress(self, doing: Iterable[dict[str, Any]]) -> None:
        """Writes `progress.json`, with what those at work say."""
        names = "doing", "host", "pid", "since", "at"
        shown = [{name: said.get(name) for name in names} for said in doing]
        seconds = self.seconds_left(len(shown))
        told = {"seconds_left": seconds and round(seconds), "at": clock()}
        told = {**self.counts(), **told, "doing": shown}
        write_json(self.out / "progress.json", told)

    def log(self, owner: str, event: str, **values: Any) -> None:
        """Appends a line to this process's own log, `log/OWNER.jsonl`."""
        path = self.out / "log" / f"{owner}.jsonl"
        text = json.dumps({"at": clock(), "event": event, **values})
        if not self._logged:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._logged = True
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def drop_checkpoints(self, fleet: str) -> None:
        """Removes a fleet's checkpoints, if it has any."""
        folder = self.out / "runs" / fleet / "checkpoints"
        # Unless another is as quick, what is left would be gone on from.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def own_checkpoints(self, fleet: str, lanes: list[str]) -> None:
        """Removes checkpoints that lack a lane to train; notes the lanes."""
        note = self.out / "runs" / fleet / "fleet.json"
        known = read_json(note).get("runs") if note.exists() else []
        if not isinstance(known, list) or any(x not in known for x in lanes):
            self.drop_checkpoints(fleet)
        if lanes != known:
            write_json(note, {"runs": lanes})


def _leads_to(link: pathlib.Path) -> str | None:
    """What a link says; None where it is none, or none any more."""
    try:
        return os.readlink(link)
    except OSError:
        return None
