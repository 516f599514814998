"""Runs a grid: what has no result yet, by need, fleet by fleet.

Any number of processes may do so at once, on any machines that share the
folder: each takes the next fleet that nobody has claimed, trains it and records
how it went.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from panda_jax import distributed, fleet, ownership, runs
from panda_jax.backbone import Backbone, check_here, load_backbone
from panda_jax.claims import STALE_SECONDS, Claim, Claims, parse_shard
from panda_jax.errors import InterruptedRun, StorageError, UserError
from panda_jax.experiments.grid.grid import Grid, words_of
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.experiments.grid.plan import (
    GRID,
    Group,
    Planned,
    expand,
    read_list,
)
from panda_jax.files import PathLike, read_json
from panda_jax.lane import TrainResult
from panda_jax.sharding import Partitioner
from panda_jax.store import StoredPrompt, load_prompt
from panda_jax.training import train_fleet

# Between looks at what others are at work on.
POLL_SECONDS = 10.0
# What workers rewrite in a grid's folder.
_FILES = (GRID, "progress.json")
# What no other run would escape either.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
Outcome = TrainResult | Exception


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a grid.

    Attributes:
      total: how many runs it has.
      done: how many of them have a result.
      failed: name -> reason, of the others.
    """

    total: int
    done: int
    failed: dict[str, str]


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
            listed = read_json(out / GRID).get("runs")
            for run in listed if isinstance(listed, list) else ():
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
            read_list(out)
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


class Worker:
    """One process at work: claims fleets, trains them, records how it went.

    Of several processes that train each fleet together, process 0 decides,
    claims and records; the others do as it says. The backbone is kept from one
    fleet to the next.
    """

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        *,
        order: list[int],
        poll: float,
        quiet: bool,
        options: dict[str, Any],
    ) -> None:
        self.ledger, self.claims = ledger, claims
        self.groups = ledger.plan.groups
        self.order, self.poll, self.options = order, poll, options
        self.main = distributed.is_main()
        self.quiet = quiet or not self.main
        self.claim: Claim | None = None
        # Fleet -> what its claim says, of those at work when last looked at.
        self.held: dict[str, dict[str, Any]] = {}
        self._waited_for: list[str] = []
        self._kept: tuple[Any, Backbone] | None = None

    def run(self) -> Summary:
        """Works until nothing is left to do."""
        ledger = self.ledger
        if self.main:
            ledger.write_plan()
            ledger.link_prompts(ledger.plan.runs)
        while True:
            step = distributed.from_main(self._next() if self.main else None)
            if step is None:
                break
            if step["group"] is None:
                time.sleep(self.poll)
                continue
            group, claim = self.groups[step["group"]], self.claim
            todo = [ledger.plan.by_id[id_] for id_ in step["runs"]]
            try:
                try:
                    self._work(group, todo)
                finally:
                    self._release()
            except KeyboardInterrupt:
                if claim is None or not claim.lost:
                    raise
                self._say(f"silent for too long: another does {group.about}")
        if self.main:
            # One that began meanwhile knew less, and removed some.
            ledger.link_prompts(ledger.plan.runs, checked=True)
            self._look_at_claims()
            self._progress("nothing is left to do")
        counts = ledger.counts()
        failed = {
            run.name: ledger.failures[run.id]
            for run in ledger.plan.runs
            if run.id in ledger.failures
        }
        # Of a mesh only process 0 knows what became of it.
        told = [counts["total"], counts["done"], failed]
        return Summary(*distributed.from_main(told))

    def _look_at_claims(self) -> None:
        self.held = self.claims.all(self.ledger.open)

    def _release(self) -> None:
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def _next(self) -> dict[str, Any] | None:
        """Claims a fleet that can begin.

        Returns:
          Its number and the runs to make; no number where others are at work
          on all that is left; None where nothing is left.
        """
        self.ledger.hear()
        found = self._claimed()
        if found is None:
            # Those that were at work may have fallen silent, or given up.
            self._look_at_claims()
            found = self._claimed()
        if found is not None:
            return found
        if not any(self.ledger.left(group) for group in self.groups):
            return None
        self._wait()
        return {"group": None}

    def _claimed(self) -> dict[str, Any] | None:
        """Claims a fleet; not those that others were last seen to work on."""
        ledger = self.ledger
        for number in self.order:
            group = self.groups[number]
            if group.name not in ledger.open or group.name in self.held:
                continue
            left = ledger.left(group)
            needs = [need for run in left for need in ledger.needed(run)]
            if any(ledger.state(need) == "todo" for need in needs):
                continue
            self.claim = self.claims.take(
                group.name, doing=group.about, on_lost=_interruption()
            )
            if self.claim is None:
                continue
            ledger.claimed(group)
            left = self._without_doomed(group)
            if left:
                return {"group": number, "runs": [run.id for run in left]}
            if not ledger.left(group):
                ledger.end(group)
            self._release()
        return None

    def _without_doomed(self, group: Group) -> list[Planned]:
        """What is left of a fleet; records runs whose needs have failed."""
        ledger, left = self.ledger, []
        known = {n for run in ledger.left(group) for n in run.needs.values()}
        needed = [ledger.plan.by_id[id_] for id_ in sorted(known)]
        ledger.look_again(n for n in needed if ledger.state(n) == "failed")
        for run in ledger.left(group):
            states = {n.name: ledger.state(n) for n in ledger.needed(run)}
            failed = [name for name, it in states.items() if it == "failed"]
            if failed:
                ledger.begin_again([run])
                error = UserError(f"needs {' and '.join(failed)}, which failed")
                ledger.fail(run, error)
            elif "todo" not in states.values():
                left.append(run)
        return left

    def _work(self, group: Group, todo: list[Planned]) -> None:
        """Makes what is left of a fleet, and records how it went."""
        ledger, owner = self.ledger, self.claims.owner
        if self.main:
            self._look_at_claims()
            self._progress(group.about)
            names = [run.name for run in todo]
            ledger.log(owner, "begin", fleet=group.name, runs=names)
        began, compiled = time.monotonic(), programs()
        found = self._make(group, todo)
        if not self.main:
            return
        for run in todo:
            outcome = found[run.lane]
            if isinstance(outcome, Exception):
                ledger.fail(run, outcome)
                self._say(f"failed: {run.name}: {outcome}")
            else:
                ledger.succeed(run, outcome.result)
        ledger.end(group)
        ledger.log(
            owner,
            "end",
            fleet=group.name,
            done=[r.name for r in todo if ledger.state(r) == "done"],
            failed=[r.name for r in todo if ledger.state(r) == "failed"],
            seconds=round(time.monotonic() - began, 1),
            compiled=programs() - compiled,
        )

    def _make(self, group: Group, todo: list[Planned]) -> dict[str, Outcome]:
        """Trains some runs of a fleet: by lane, a result or why there is none.

        Raises:
          InterruptedRun: asked to end, and saved.
          OSError, StorageError: a full disk, which the other runs would meet
            too.
          UserError: in one of several processes that train together: it lacks
            what the others have.
        """
        if self.main:
            self.ledger.begin_again(todo)
        lanes, wrong = {}, {}
        prompts: dict[str, StoredPrompt] = {}
        for run in todo:
            try:
                lanes[run.lane] = self._given(run, prompts)
            except UserError as error:
                wrong[run.lane] = str(error)
        found: dict[str, Outcome] = {}
        # All train the same lanes: those whose prompts each of them can read.
        for said in distributed.gathered(wrong):
            for lane, why in said.items():
                lanes.pop(lane, None)
                found.setdefault(lane, UserError(why))
        if lanes:
            found |= self._trained(todo[0], lanes)
        return found

    def _given(
        self, run: Planned, prompts: dict[str, StoredPrompt]
    ) -> dict[str, Any]:
        """A run's arguments; the prompts that it needs are kept by id."""
        settings = dataclasses.asdict(runs.trimmed(run.run))
        del settings["backbone"]
        for role, need in run.needs.items():
            if need not in prompts:
                made = self.ledger.plan.by_id[need]
                prompts[need] = load_prompt(self.ledger.out / made.folder)
            settings[role] = prompts[need]
        return settings

    def _trained(
        self, like: Planned, lanes: dict[str, Any]
    ) -> dict[str, Outcome]:
        """Trains lanes together, or, where that fails, one after another.

        What fails all of them at once need not be every lane's fault, and each
        is to have its own reason.
        """
        if self.main:
            self.ledger.own_checkpoints(like.fleet, list(lanes))
        distributed.barrier("fleet")  # None reads what is being removed.
        folder = self.ledger.out / "runs" / like.fleet
        try:
            backbone = self._backbone(like)
            options = {**self.options, "out_dir": folder, "claimed": True}
            return dict(train_fleet(backbone, lanes, **options))
        except InterruptedRun:
            raise
        except Exception as error:
            disk = isinstance(error, StorageError) or (
                isinstance(error, OSError) and error.errno in _DISK
            )
            # One of several processes that fails so has rather lost another.
            lost = jax.process_count() > 1 and not isinstance(error, UserError)
            # Nor may one that fails alone go on to lanes of its own.
            if disk or lost or not distributed.all_failed():
                raise
            if len(lanes) == 1:
                return dict.fromkeys(lanes, error)
        self._say(f"{like.fleet} fails as a fleet: one run after another")
        found: dict[str, Outcome] = {}
        for name, lane in lanes.items():
            found |= self._trained(like, {name: lane})
        return found

    def _backbone(self, run: Planned) -> Backbone:
        settings = run.run
        dtype = "float32" if settings.method == "model" else settings.dtype
        wanted = settings.backbone, dtype
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # room for the next
            loaded = load_backbone(settings.backbone, dtype=dtype)
            self._kept = wanted, loaded
        return self._kept[1]

    def _say(self, words: str) -> None:
        """A line on stderr, behind the counts."""
        if self.quiet:
            return
        counts = self.ledger.counts()
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        print(
            f"{time.strftime('%H:%M:%S')} grid "
            f"[{counts['done']}/{counts['total']}{failed}] {words}",
            file=sys.stderr,
            flush=True,
        )

    def _progress(self, doing: str) -> None:
        """The time left and what is done now, as a line and as a file."""
        self.ledger.write_progress(self.held.values())
        seconds = self.ledger.seconds_left(len(self.held))
        left = f"about {spoken(seconds)} left; " if seconds else ""
        self._say(f"{left}{doing}")

    def _wait(self) -> None:
        """Says, once, whom it waits for."""
        held = self.held.values()
        names = sorted(f"{said.get('host')}:{said.get('pid')}" for said in held)
        if names and names != self._waited_for:
            self.ledger.write_progress(held)
            self._say(f"waiting for {', '.join(names)}")
        self._waited_for = names


def spoken(seconds: float) -> str:
    """A duration such as `10 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def programs() -> int:
    """How many training steps this process has compiled so far."""
    # Only jit's wrapper in C++ knows.
    return fleet.run_steps._cache_size()  # pyright: ignore


def _interruption() -> Callable[[], object] | None:
    """What ends this process's work on a fleet that is now another's."""
    main = threading.main_thread()
    if threading.current_thread() is not main or jax.process_count() > 1:
        return None

    def ended(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    # A signal ends what it waits for, too. Not SIGINT, which programs that a
    # script starts in the background ignore.
    signal.signal(signal.SIGUSR2, ended)
    return lambda: signal.pthread_kill(main.ident or 0, signal.SIGUSR2)
