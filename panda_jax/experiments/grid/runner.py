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

from panda_jax.api.training import train_fleet
from panda_jax.config import runs
from panda_jax.errors import InterruptedRun, StorageError, UserError
from panda_jax.experiments.grid.grid import (
    GRID,
    Grid,
    Group,
    Planned,
    expand,
    read_list,
    words_of,
)
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.io import ownership
from panda_jax.io.claims import STALE_SECONDS, Claim, Claims, parse_shard
from panda_jax.io.files import PathLike, read_json
from panda_jax.parallel import distributed
from panda_jax.parallel.sharding import Partitioner
from panda_jax.step import fleet
from panda_jax.store.backbones import Backbone, check_here, load_backbone
from panda_jax.store.prompt_folders import StoredPrompt, load_prompt
from panda_jax.training.lane import TrainResult

# Between looks at what others are at work on.
POLL_SECONDS = 10.0
# What workers rewrite in a grid's folder.
_FILES = (GRID, "progress.json")
# What no other run would escape either.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
Outcome = TrainResult | Exception


@dataclasses.dataclass(frozen=True)
class Summary:
    """How many runs a grid has and are done, and name -> why others failed."""

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
      shard: `i/n`: begin with the i-th of n parts, out of the others' way.
      retry_failed: try again what has failed before.
      data_dir, tfds_data_dir, partitioner: as in `train`.
      quiet: show no progress.
      stale_seconds: after which a silent process's work is taken over.
      poll_seconds: between looks at what others are at work on.
      overwrite: files in the way are replaced, whoever wrote them.

    Raises:
      UserError: settings that no run can have, a shard that is none, a folder
        or backbone that is not on this machine, so that every run that it tried
        would fail, or files in the way that no grid wrote.
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
    options = {"data_dir": data_dir, "tfds_data_dir": tfds_data_dir}
    return Worker(
        ledger=ledger,
        claims=Claims(out / "claims", stale=stale_seconds),
        order=plan.dealt(index, count),
        poll=poll_seconds,
        quiet=quiet or not distributed.is_main(),
        options={**options, "partitioner": partitioner, "quiet": quiet},
    ).run()


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
    here = [name for name in known if os.path.isdir(name)]
    said = {}
    for name in filter(os.path.isdir, set(grid.backbones) - known):
        same = [x for x in here if os.path.samefile(x, name)]
        said |= dict.fromkeys([name], same[0]) if same else {}
    if not said:
        return grid
    overrides = grid.overrides and {
        " ".join(said.get(word, word) for word in words_of(key)): value
        for key, value in grid.overrides.items()
    }
    backbones = tuple(said.get(name, name) for name in grid.backbones)
    return dataclasses.replace(grid, backbones=backbones, overrides=overrides)


def _claim_files(out: pathlib.Path, *, overwrite: bool) -> None:
    """Refuses files that are no grid's where all workers write theirs."""
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


@dataclasses.dataclass(kw_only=True)
class Worker:
    """One process at work: claims fleets, trains them, records how it went.

    Of several that train each fleet together, process 0 decides, claims and
    records. The backbone is kept from one fleet to the next.
    """

    ledger: Ledger
    claims: Claims
    order: list[int]
    poll: float
    quiet: bool
    options: dict[str, Any]
    claim: Claim | None = None
    # Fleet -> what its claim says, of those at work when last looked at.
    held: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    _waited_for: list[str] = dataclasses.field(default_factory=list)
    _kept: tuple[Any, Backbone] | None = None

    def __post_init__(self) -> None:
        self.groups = self.ledger.plan.groups
        self.main = distributed.is_main()

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
            # Of who was killed while giving up the claim on a fleet, which
            # nobody needs to claim again.
            self.claims.sweep()
            self._progress("nothing is left to do")
        total, done, _ = ledger.counts().values()
        why = ledger.failures
        failed = {x.name: why[x.id] for x in ledger.plan.runs if x.id in why}
        # Of a mesh only process 0 knows what became of it.
        return Summary(*distributed.from_main([total, done, failed]))

    def _look_at_claims(self) -> None:
        self.held = self.claims.all(self.ledger.open)

    def _release(self) -> None:
        if self.claim is not None:
            self.claim.release()
            self.claim = None

    def _next(self) -> dict[str, Any] | None:
        """Claims a fleet that can begin: its number, and the runs to make.

        No number where others are at work on all that is left; None where
        nothing is left.
        """
        self.ledger.hear()
        found = self._claimed()
        if found is None:
            # Those that were at work may have fallen silent, or given up.
            self._look_at_claims()
            found = self._claimed()
        if found is None and any(map(self.ledger.left, self.groups)):
            self._wait()
            return {"group": None}
        return found

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
        named: dict[str, list[str]] = {"done": [], "failed": []}
        for run in todo:
            outcome = found[run.lane]
            if isinstance(outcome, Exception):
                ledger.fail(run, outcome)
                self._say(f"failed: {run.name}: {outcome}")
            else:
                ledger.succeed(run, outcome.result)
            named[ledger.state(run)].append(run.name)
        ledger.end(group)
        took = {"seconds": round(time.monotonic() - began, 1)}
        took |= {"compiled": programs() - compiled}
        ledger.log(owner, "end", fleet=group.name, **named, **took)

    def _make(self, group: Group, todo: list[Planned]) -> dict[str, Outcome]:
        """Trains some runs of a fleet: by lane, a result or why there is none.

        Raises what the other runs would meet too, such as a full disk.
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
        """Trains lanes together; where that fails, each for its own reason."""
        if self.main:
            self.ledger.own_checkpoints(like.fleet, list(lanes))
        distributed.barrier("fleet")  # None reads what is being removed.
        folder = self.ledger.out / "runs" / like.fleet
        options = {**self.options, "out_dir": folder, "claimed": True}
        try:
            return dict(train_fleet(self._backbone(like), lanes, **options))
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
        name, dtype = run.run.backbone, run.run.dtype
        wanted = name, "float32" if run.run.method == "finetune" else dtype
        if self._kept is None or self._kept[0] != wanted:
            self._kept = None  # room for the next
            self._kept = wanted, load_backbone(name, dtype=wanted[1])
        return self._kept[1]

    def _say(self, words: str) -> None:
        """A line on stderr, behind the counts."""
        if self.quiet:
            return
        total, done, failed = self.ledger.counts().values()
        counts = f"{done}/{total}" + (f", {failed} failed" if failed else "")
        line = f"{time.strftime('%H:%M:%S')} grid [{counts}] {words}"
        print(line, file=sys.stderr, flush=True)

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
