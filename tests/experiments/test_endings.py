"""A grid's bookkeeping at scale: few calls, and no kill loses or repeats."""

import builtins
import io
import json
import os
import pathlib
import shutil
import threading
import time
import types
import typing
from collections import Counter

import pytest

from panda_jax import UserError
from panda_jax.experiments.grid import runner
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ending, Endings, Ledger
from panda_jax.experiments.grid.runner import run_grid
from panda_jax.io import claims
from panda_jax.io.files import hidden
from panda_jax.store.prompt_folders import StoredPrompt
from panda_jax.training.lane import TrainResult

TASKS = "toy_sentiment,toy_topic,toy_review,toy_acceptability"
WIDE = {
    "backbones": "random:bert-tiny",
    "sources": TASKS,
    "targets": TASKS,
    "methods": "prompt,pot,panda",
    "seeds": tuple(range(16)),
    "settings": {"steps": 3},
}
SMALL = {
    **WIDE,
    "sources": "toy_sentiment,toy_topic",
    "targets": "toy_topic",
    "seeds": (0,),
}
# Of a day, so that no sign of life is among what is counted.
OPTIONS = {"quiet": True, "poll_seconds": 0.5, "stale_seconds": 86400.0}
NAMES = (
    "open", "stat", "lstat", "listdir", "scandir", "mkdir", "rmdir", "replace",
    "rename", "unlink", "remove", "symlink", "readlink", "link", "utime",
    "chmod", "access", "mkfifo",
)  # fmt: skip


# None is loaded.
PROMPT = typing.cast(StoredPrompt, None)


class Killed(BaseException):
    """As SIGKILL, but that Python goes on."""


class Disk:
    """Counts the calls that name a path, and may end a process in one.

    Attributes:
      calls: how many by name.
      aside: threads whose calls are training's own, and not counted.
      left: how many go well before all fail; None for all.
    """

    def __init__(self, monkeypatch):
        self.calls = Counter()
        self.aside = set()
        self.left = None
        for name in NAMES:
            monkeypatch.setattr(os, name, self._passed(getattr(os, name)))
        opened = self._passed(io.open)
        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)

    def _passed(self, real):
        name = real.__name__

        def call(*given, **options):
            # Not /proc, by which claims tell who has ended, nor the sources
            # that a traceback shows.
            paths = [str(path) for path in given[:2]]
            if any("test_" in path and path[-3:] != ".py" for path in paths):
                self._count(name)
            return real(*given, **options)

        return call

    def _count(self, name):
        if threading.get_ident() not in self.aside:
            self.calls[name] += 1
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def trained(monkeypatch, request):
    """What was trained, lane by lane, by a stand-in that only leaves files."""
    names = []

    def stand_in(backbone, lanes, *, out_dir, **options):
        disk = request.getfixturevalue("disk")
        disk.aside.add(threading.get_ident())
        try:
            (out_dir / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
            for lane in lanes:
                (out_dir / lane).mkdir(parents=True, exist_ok=True)
                for name in ("run.json", "metrics.jsonl"):
                    (out_dir / lane / name).write_text("{}")
            for lane in lanes:
                names.append(lane)
                path = out_dir / lane / "result.json"
                path.write_text('{"seconds": 60.0}')
        finally:
            disk.aside.discard(threading.get_ident())
        result = {"seconds": 60.0}
        return {lane: TrainResult(PROMPT, result) for lane in lanes}

    monkeypatch.setattr(runner, "train_fleet", stand_in)
    monkeypatch.setattr(runner, "load_prompt", lambda folder: None)
    monkeypatch.setattr(runner, "load_backbone", lambda name, dtype: None)
    return names


def lanes(grid):
    return sorted(run.lane for run in expand(Grid(**grid)).runs)


def at_once(grid, out, workers):
    """Several workers, as threads; what each of them found at the end."""
    found = []

    def work(index):
        shard = f"{index}/{workers}"
        found.append(run_grid(Grid(**grid), out, shard=shard, **OPTIONS))

    threads = [
        threading.Thread(target=work, args=(index,)) for index in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def patient(monkeypatch):
    """Who waits looks again when another fleet has ended, not by the clock."""
    changed, ended, seen = threading.Condition(), [0], Counter()
    real = Ledger.end

    def end(self, group):
        real(self, group)
        with changed:
            ended[0] += 1
            changed.notify_all()

    def sleep(seconds):
        this = threading.get_ident()
        with changed:
            assert changed.wait_for(lambda: ended[0] > seen[this], 100)
            seen[this] = ended[0]

    monkeypatch.setattr(Ledger, "end", end)
    clock = types.SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    monkeypatch.setattr(runner, "time", clock)


@pytest.mark.parametrize("workers", [1, 2])
def test_two_calls_a_run_in_a_grid_s_life(
    tmp_path, disk, trained, patient, workers
):
    found = at_once(WIDE, tmp_path, workers)
    total = len(lanes(WIDE))
    assert total == 576
    assert [(each.done, each.failed) for each in found] == [
        (total, {})
    ] * workers
    assert sorted(trained) == lanes(WIDE)
    assert sum(disk.calls.values()) <= 2 * total, disk.calls


def test_a_look_costs_what_changed(tmp_path, disk):
    plan = expand(Grid(**WIDE))
    here, there = Ledger(plan, tmp_path), Ledger(plan, tmp_path)
    disk.calls.clear()
    here.hear()
    assert sum(disk.calls.values()) == 1, "a listing, of 576 runs left to do"
    for group in plan.groups[:2]:
        for run in group.runs:
            there.succeed(run, {"seconds": 2.0})
        there.end(group)
    disk.calls.clear()
    here.hear()
    assert sum(disk.calls.values()) == 1 + 2
    assert here.counts() == there.counts()
    assert here.counts()["done"] == sum(len(g.runs) for g in plan.groups[:2])
    disk.calls.clear()
    here.hear()
    assert sum(disk.calls.values()) == 1


def killed(grid, out, disk, after):
    """Runs the grid up to a call that it does not survive; or to its end."""
    disk.left = after
    try:
        run_grid(Grid(**grid), out, **OPTIONS)
    except Killed:
        return True
    finally:
        disk.left = None
    return False


def results(grid, out):
    return {
        run.lane
        for run in expand(Grid(**grid)).runs
        if (out / run.folder / "result.json").exists()
    }


def check_all_is_there(grid, out):
    """Results, the banks of all that is done, and no checkpoint."""
    plan = expand(Grid(**grid))
    assert results(grid, out) == {run.lane for run in plan.runs}
    for run in plan.runs:
        for role in {"source", "prompt"} & set(run.roles):
            link = out / run.bank(role)
            target = out / run.folder / "prompt"
            assert os.path.realpath(link) == os.path.realpath(target)
    assert not list(out.rglob("checkpoints"))


@pytest.fixture
def dead(monkeypatch):
    """Who made an earlier claim has ended, as its process here has not."""
    monkeypatch.setattr(claims, "_is_dead", lambda said: True)
    monkeypatch.setattr(claims.Claim, "_live", lambda self: None)


def test_killed_at_every_third_call_nothing_is_lost_or_made_again(
    tmp_path, disk, trained, dead
):
    after, died = 0, True
    while died:
        out = tmp_path / str(after)
        died = killed(SMALL, out, disk, after)
        there = results(SMALL, out)
        trained.clear()
        found = run_grid(Grid(**SMALL), out, **OPTIONS)
        assert (found.done, found.failed) == (found.total, {}), after
        assert set(trained) == set(lanes(SMALL)) - there, after
        check_all_is_there(SMALL, out)
        after += 3
    assert after > 100, "kills too few"


def test_killed_again_and_again_it_ends(tmp_path, disk, trained, dead):
    """With too few calls for a whole life each time."""
    deaths, after = 0, 40
    while killed(SMALL, tmp_path, disk, after):
        deaths += 1
        after += 1
    assert deaths > 3
    check_all_is_there(SMALL, tmp_path)


def test_a_grid_without_a_word_of_its_endings_is_picked_up(
    tmp_path, disk, trained
):
    """As earlier releases leave one."""
    run_grid(Grid(**WIDE), tmp_path, **OPTIONS)
    for name in ("ended", "claims", "log"):
        shutil.rmtree(tmp_path / name)
    trained.clear()
    total = len(lanes(WIDE))
    assert run_grid(Grid(**WIDE), tmp_path, **OPTIONS).done == total
    assert trained == []
    disk.calls.clear()
    assert Ledger(expand(Grid(**WIDE)), tmp_path).counts()["done"] == total
    assert not Ledger(expand(Grid(**WIDE)), tmp_path).open
    (one, *_) = expand(Grid(**WIDE)).groups[-1].runs
    (tmp_path / one.folder / "result.json").unlink()
    shutil.rmtree(tmp_path / "ended")
    assert run_grid(Grid(**WIDE), tmp_path, **OPTIONS).done == total
    assert trained == [one.lane]


def test_what_ends_as_another_begins_stays_in_its_bank(
    tmp_path, disk, trained, monkeypatch
):
    """Who begins knows it as it was a moment ago."""
    real = Ledger.write_plan

    def late(self):
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "write_plan", real)
            run_grid(Grid(**SMALL), tmp_path, **OPTIONS)

    monkeypatch.setattr(Ledger, "write_plan", late)
    assert run_grid(Grid(**SMALL), tmp_path, **OPTIONS).done == 6
    assert sorted(trained) == lanes(SMALL)
    check_all_is_there(SMALL, tmp_path)


@pytest.mark.parametrize("what", ["folders", "result"])
def test_a_run_whose_files_were_removed_is_made_again(
    tmp_path, disk, trained, dead, what
):
    run_grid(Grid(**SMALL), tmp_path, **OPTIONS)
    runs = expand(Grid(**SMALL)).runs
    if what == "folders":
        removed = [runs[0], runs[-1]]
        for run in removed:
            shutil.rmtree(tmp_path / run.folder)
    else:
        removed = [runs[0]]
        (tmp_path / runs[0].folder / "result.json").unlink()
    trained.clear()
    shutil.copytree(tmp_path, tmp_path / "copy", symlinks=True)
    assert run_grid(Grid(**SMALL), tmp_path, **OPTIONS).done == 6
    assert sorted(trained) == sorted(run.lane for run in removed)
    # Also after a kill, when the folder is there again without a result, of
    # which something was told before.
    after = 0
    while True:
        out = tmp_path / f"killed{after}"
        shutil.copytree(tmp_path / "copy", out, symlinks=True)
        died = killed(SMALL, out, disk, after)
        assert run_grid(Grid(**SMALL), out, **OPTIONS).done == 6
        assert results(SMALL, out) == set(lanes(SMALL)), after
        if not died:
            break
        after += 3
    assert after > 20


def group_of(plan, run):
    return next(group for group in plan.groups if run in group.runs)


def test_failures_are_heard_of_and_so_is_their_mending(tmp_path):
    plan = expand(Grid(**SMALL))
    run = plan.runs[0]
    group = group_of(plan, run)
    plain, other = Ledger(plan, tmp_path), Ledger(plan, tmp_path)
    other.fail(run, UserError("diverged"))
    other.end(group)
    plain.hear()
    assert plain.failures == {run.id: "diverged"}
    assert group.name not in plain.open
    again = Ledger(plan, tmp_path, retry_failed=True)
    assert again.left(group) == [run]
    # The old failure, told once more by one that does not try again.
    plain.end(group)
    again.hear()
    assert again.left(group) == [run]
    again.claimed(group)
    assert again.left(group) == [run]
    again.begin_again([run])
    again.succeed(run, {"seconds": 1.0})
    again.end(group)
    plain.hear()
    assert (plain.state(run), plain.failures) == ("done", {})
    # A new failure is one for those who try again, too.
    (tmp_path / run.folder).mkdir(parents=True, exist_ok=True)
    plain.fail(plan.runs[1], UserError("later"))
    plain.end(group_of(plan, plan.runs[1]))
    again.hear()
    assert again.failures == {plan.runs[1].id: "later"}


def test_a_failure_whose_record_is_gone_is_none(tmp_path):
    """A retry removed it, and was killed."""
    plan = expand(Grid(**SMALL))
    run = plan.runs[0]
    ledger = Ledger(plan, tmp_path)
    ledger.fail(run, UserError("diverged"))
    ledger.end(group_of(plan, run))
    assert Ledger(plan, tmp_path).state(run) == "failed"
    (tmp_path / run.folder / "failed.json").unlink()
    assert Ledger(plan, tmp_path).state(run) == "todo"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"fleet": 3}', '{"fleet": "f", "done": [], "failed": {}}'],
)
def test_what_is_no_ending_says_nothing_until_it_is_one(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_text(text)
    (tmp_path / ".some.json.0123.json").write_text(text)
    endings = Endings(tmp_path)
    assert endings.news() == endings.news() == []
    whole = {"fleet": "f", "done": {"a": "long", "b": 2}, "failed": {"c": 1}}
    path.write_text(json.dumps(whole))
    assert endings.news() == [Ending("f", {"a": 0.0, "b": 2.0}, {"c": "1"})]
    assert endings.news() == []
    endings.take_back("f")
    assert not path.exists()
    assert pathlib.Path(tmp_path / ".some.json.0123.json").exists()


def test_other_grids_of_the_same_fleets_settle_what_is_theirs(
    tmp_path, disk, trained
):
    """A fleet that has ended with fewer lanes has not, where there are more."""
    few = {**WIDE, "seeds": (0,)}
    assert run_grid(Grid(**few), tmp_path, **OPTIONS).done == 36
    assert sorted(trained) == lanes(few)
    trained.clear()
    assert run_grid(Grid(**WIDE), tmp_path, **OPTIONS).done == 576
    assert sorted(trained) == sorted(set(lanes(WIDE)) - set(lanes(few)))


def test_what_a_killed_worker_had_on_its_way_goes_a_day_later(tmp_path):
    for name, days in (("old", 2.0), ("young", 0.5)):
        path = tmp_path / f".{name}.00112233aabb.json.aabbccddeeff.json"
        path.write_text("{")
        then = time.time() - days * 86400
        os.utime(path, (then, then))
    assert Endings(tmp_path).news() == []
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["young"]


def test_what_a_kill_left_beside_a_result_goes_with_the_next_start(
    tmp_path, trained
):
    """It came between the result and the word of it."""
    run_grid(Grid(**SMALL), tmp_path, **OPTIONS)
    (run, *_) = expand(Grid(**SMALL)).runs
    folder = tmp_path / run.folder
    hidden(folder / "panda_jax").mkdir()
    for path in (tmp_path / "ended").glob(f"{run.fleet}.*"):
        path.unlink()
    trained.clear()
    run_grid(Grid(**SMALL), tmp_path, **OPTIONS)
    assert trained == []
    assert [x.name for x in folder.glob(".*") if x.is_dir()] == []
