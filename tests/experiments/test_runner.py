"""Running grids: by need, once each, past failures, and past any kill."""

import csv
import glob
import json
import pathlib
import random
import shutil
import signal
import socket
import threading
import time

import pytest
from grid_worker import ENDED, SMALL, Workers

import panda_jax as pj
from panda_jax import UserError
from panda_jax.errors import InterruptedRun, StorageError
from panda_jax.experiments.grid import runner
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.experiments.grid.runner import run_grid
from panda_jax.experiments.report.report import write_report
from panda_jax.io import files
from panda_jax.io.claims import Claims
from panda_jax.io.writers import read_metrics
from panda_jax.store.prompt_folders import PromptBank, content_hash, load_prompt
from panda_jax.training import lane, trainer

PLAN = expand(Grid(**SMALL))
QUICK = {"quiet": True, "poll_seconds": 0.05}


def table(out, plan=PLAN):
    """What each run ends with, and what it logged on the way."""
    rows = {}
    for run in plan.runs:
        folder = out / run.folder
        result = json.loads((folder / "result.json").read_text())
        rows[run.name] = json.dumps(
            [
                [result[k] for k in ("best", "first_epoch", "final", "steps")],
                result["kd_weight"],
                content_hash(load_prompt(folder).prompt),
                [
                    {k: v for k, v in line.items() if "second" not in k}
                    for line in read_metrics(folder / "metrics.jsonl")
                ],
            ]
        )
    return rows


def events(out, event):
    return [
        line
        for path in sorted((out / "log").glob("*.jsonl"))
        for line in map(json.loads, path.read_text().splitlines())
        if line["event"] == event
    ]


def begun(out):
    return sorted(name for e in events(out, "begin") for name in e["runs"])


def failed(out):
    paths = (out / "runs").rglob("failed.json")
    found = [json.loads(path.read_text()) for path in paths]
    return {each["run_id"]: each["error"] for each in found}


def named(part, plan=PLAN):
    """The run whose name, less backbone and id, is this."""
    (found,) = (
        run
        for run in plan.runs
        if run.name.removeprefix("random-bert-tiny-").rpartition("-")[0] == part
    )
    return found


@pytest.fixture(autouse=True)
def backbone(tiny, monkeypatch):
    """Loaded once. The processes of `Workers` load their own."""
    monkeypatch.setattr(runner, "load_backbone", lambda name, dtype: tiny)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The grid, run without an interruption."""
    out = tmp_path_factory.mktemp("whole")
    found = run_grid(Grid(**SMALL), out, **QUICK)
    assert (found.total, found.done, found.failed) == (8, 8, {})
    return out


@pytest.fixture
def copied(whole, tmp_path):
    """A copy with the source prompts alone; claims and logs begin anew."""
    out = tmp_path / "copied"
    shutil.copytree(whole / "runs", out / "runs", symlinks=True)
    for run in PLAN.runs:
        if run.roles != ("source",):
            shutil.rmtree(out / run.folder)
    return out


def test_every_run_is_made_once_by_need(whole):
    assert begun(whole) == sorted(run.name for run in PLAN.runs)
    order = [e["fleet"] for e in events(whole, "begin")]
    assert order == [group.name for group in PLAN.groups]
    compiled = sum(e["compiled"] for e in events(whole, "end"))
    assert compiled <= PLAN.programs < len(PLAN.groups)
    for run in PLAN.runs:
        about = json.loads((whole / run.folder / "run.json").read_text())
        result = json.loads((whole / run.folder / "result.json").read_text())
        assert about["settings"]["seed"] == run.run.seed
        assert result["source"] == run.source
        for role, id_ in run.needs.items():
            need = PLAN.by_id[id_]
            prompt = load_prompt(whole / need.folder).prompt
            made_from = f"{need.run.task}@{content_hash(prompt)}"
            assert about["needs"][role] == made_from
        for role in ("source", "teacher", "target_prompt"):
            assert (about["needs"][role] is None) == (role not in run.needs)
    assert not list(whole.rglob("checkpoints"))
    progress = json.loads((whole / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (8, 8)
    assert (progress["seconds_left"], progress["doing"]) == (0, [])
    plan = json.loads((whole / "grid.json").read_text())["runs"]
    assert [run["id"] for run in plan] == [run.id for run in PLAN.runs]
    assert all((whole / run["folder"] / "result.json").exists() for run in plan)


def test_prompts_lie_in_banks_by_task(whole):
    sources = PromptBank(whole / "sources" / "random-bert-tiny" / "s0")
    targets = PromptBank(whole / "targets" / "random-bert-tiny" / "s0")
    assert sources.names == ["toy_acceptability", "toy_sentiment"]
    assert [stored.info.task for stored in sources] == sources.names
    assert targets.names == ["toy_review"]
    assert targets["toy_review"].info.method == "prompt"
    scores = pj.score(sources=sources, targets=targets, metrics=("e_avg",))
    assert scores.values["e_avg"].shape == (2, 1)


def test_what_is_done_is_left_alone(whole):
    before = table(whole)
    again = run_grid(Grid(**SMALL), whole, retry_failed=True, **QUICK)
    assert again.done == 8
    assert len(begun(whole)) == 8
    assert table(whole) == before


def saved(folder: pathlib.Path) -> set[str]:
    """The checkpoints that are whole."""
    # Folders come and go meanwhile, which pathlib minds and glob does not.
    return {*glob.glob(f"{folder}/**/checkpoints/[0-9]*", recursive=True)}


def test_killed_at_random_moments_it_ends_alike(whole, tmp_path):
    chance, kills, resumed = random.Random(11), 0, False
    with Workers() as workers:
        while kills < 20:
            worker = workers.start(tmp_path, poll_seconds=0.1)
            # Much of a start is no training: most kills wait for the first.
            words = chance.choice(["grid [", "compilation", "epoch 1/"])
            enough, before = kills >= 5 and resumed, saved(tmp_path)
            # One at least has to come when there is something to go on from.
            late = kills >= 5
            while worker.alive and (
                enough
                or (
                    saved(tmp_path) <= before
                    if late
                    else words not in worker.said
                )
            ):
                time.sleep(0.01)
            if not late:
                time.sleep(chance.uniform(0.0, 0.4))
            if worker.alive:
                worker.kill()
                kills += 1
            while worker.alive:
                time.sleep(0.01)
            resumed |= "resumed at step" in worker.said
            if ENDED in worker.said:
                break
    assert kills >= 5, "the grid was too quick for its murderer"
    assert resumed, "never killed in the middle of a training"
    assert table(tmp_path) == table(whole)
    assert not failed(tmp_path)
    assert not list(tmp_path.rglob("checkpoints"))
    reports = [
        {path.name: path.read_bytes() for path in (out / "r").iterdir()}
        for out in (whole, tmp_path)
        if write_report(out, out / "r")
    ]
    assert reports[0] == reports[1]
    assert "8 runs are done, none lost" in reports[0]["report.md"].decode()


def test_what_was_killed_giving_up_its_claim_is_swept_at_the_end(
    whole, tmp_path
):
    """Of a fleet that is done: nobody claims it again."""
    out = tmp_path / "out"
    shutil.copytree(whole, out, symlinks=True)
    claim = next((out / "claims").glob("*/*/claim.json"))
    files._beside(claim).write_text("{")
    run_grid(Grid(**SMALL), out, **QUICK)
    hidden = {path.name for path in out.rglob(".*")}
    assert hidden <= {".panda_jax.json"}


def test_two_at_once_make_each_run_once(whole, tmp_path):
    with Workers() as workers:
        pair = [
            workers.start(tmp_path, shard=f"{index}/2", poll_seconds=0.05)
            for index in range(2)
        ]
        end = time.monotonic() + 200
        while any(worker.alive for worker in pair) and time.monotonic() < end:
            time.sleep(0.05)
    for worker in pair:
        assert ENDED in worker.said, worker.said
    assert begun(tmp_path) == sorted(run.name for run in PLAN.runs)
    assert len(list((tmp_path / "log").iterdir())) == 2, "one did it all"
    assert table(tmp_path) == table(whole)


def test_what_another_makes_is_waited_for(whole, tmp_path):
    source = named("toy_sentiment-prompt-s0")
    other = Claims(tmp_path / "claims").take(source.fleet)
    seen = []

    def makes_it():
        while len(events(tmp_path, "end")) < 2:
            time.sleep(0.02)
        time.sleep(0.3)  # to look for more to do
        seen.extend(begun(tmp_path))
        shutil.copytree(whole / source.folder, tmp_path / source.folder)
        other.release()

    thread = threading.Thread(target=makes_it)
    thread.start()
    found = run_grid(Grid(**SMALL), tmp_path, **QUICK)
    thread.join()
    assert (found.done, found.failed) == (8, {})
    assert seen == sorted(
        named(part).name
        for part in (
            "toy_acceptability-prompt-s0",
            "toy_review-prompt-s0",
            "toy_review-control-s0",
        )
    )
    assert len(begun(tmp_path)) == 7


def test_what_is_done_as_it_is_claimed_is_not_done_again(
    whole, copied, monkeypatch
):
    real = Claims.take

    def late(self, name, **options):
        folder = copied / "runs" / name
        shutil.copytree(whole / "runs" / name, folder, dirs_exist_ok=True)
        return real(self, name, **options)

    monkeypatch.setattr(Claims, "take", late)
    assert run_grid(Grid(**SMALL), copied, **QUICK).done == 8
    assert begun(copied) == []


def as_one(out, grid, *options):
    """Processes of one mesh, when they have ended; options of each."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{made.getsockname()[1]}"
    with Workers() as workers:
        pair = [
            workers.start(
                out,
                grid=grid,
                poll_seconds=0.05,
                mesh={
                    "coordinator_address": address,
                    "process_count": len(options),
                    "process_index": index,
                },
                **each,
            )
            for index, each in enumerate(options)
        ]
        end = time.monotonic() + 200
        while any(worker.alive for worker in pair) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(worker.alive for worker in pair)
    return pair


@pytest.mark.parametrize(
    ("lacks", "alone"), [("prompts", True), ("data", True), ("data", False)]
)
def test_no_process_of_a_mesh_waits_for_one_that_lacks_something(
    copied, lacks, alone
):
    grid, lacking = {**SMALL, "methods": "pot"}, {"lacks": lacks}
    if alone:
        pair = as_one(copied, grid, {}, {**lacking, "apart": 1.0})
    else:
        pair = as_one(copied, grid, lacking, lacking)
    if lacks == "data" and alone:
        # The other is in the middle of it: both end, and no run has failed.
        assert "UserError: no data here" in pair[1].said
        assert all(ENDED not in worker.said for worker in pair)
        assert not failed(copied)
        return
    # Known before any trains, or by all: the runs fail, for all.
    for worker in pair:
        assert ENDED in worker.said, worker.said
    assert list(failed(copied).values()) == [f"no {lacks} here"] * 2


def test_two_processes_train_each_fleet_together(whole, tmp_path):
    """One decides and claims, the other does as it says."""
    bad = {"source toy_acceptability": {"learning_rate": 1e30}}
    grid = {**SMALL, "methods": "prompt,pot", "overrides": bad}
    plan = expand(Grid(**grid))
    pair = as_one(tmp_path, grid, {}, {})
    for worker in pair:
        assert ENDED in worker.said, worker.said
    assert len(list((tmp_path / "log").iterdir())) == 1
    lost = named("toy_review-pot-toy_acceptability-s0", plan).name
    assert begun(tmp_path) == sorted(
        run.name for run in plan.runs if run.name != lost
    )
    culprit = named("toy_acceptability-prompt-s0", plan).name
    assert set(failed(tmp_path)) == {lost, culprit}
    for part in ("toy_review-prompt-s0", "toy_review-pot-toy_sentiment-s0"):
        results = [
            json.loads((out / named(part).folder / "result.json").read_text())
            for out in (whole, tmp_path)
        ]
        assert results[0]["final"] == results[1]["final"]


def test_a_failure_is_recorded_and_the_others_go_on(whole, tmp_path, capsys):
    bad = {
        **SMALL,
        "sources": "toy_sentiment,toy_acceptability,cb",
        "overrides": {"source toy_acceptability": {"learning_rate": 1e30}},
    }
    plan = expand(Grid(**bad))
    (tmp_path / "nothing").mkdir()
    options = {**QUICK, "quiet": False, "data_dir": tmp_path / "nothing"}
    found = run_grid(Grid(**bad), tmp_path, **options)
    culprits = {
        named(f"{task}-prompt-s0", plan).name: words
        for task, words in (
            ("toy_acceptability", "Lower --learning_rate"),
            ("cb", "nothing"),
        )
    }
    for name, words in culprits.items():
        assert words in found.failed[name]
    for task in ("toy_acceptability", "cb"):
        source = named(f"{task}-prompt-s0", plan).name
        pot = named(f"toy_review-pot-{task}-s0", plan).name
        panda = named(f"toy_review-panda-{task}-s0", plan).name
        assert found.failed[pot] == f"needs {source}, which failed"
        assert found.failed[panda] == f"needs {source} and {pot}, which failed"
    assert len(found.failed) == 6
    assert failed(tmp_path) == found.failed
    assert found.done == found.total - 6 == 5
    # The others are what they are without it.
    for part in ("toy_review-pot-toy_sentiment-s0", "toy_review-prompt-s0"):
        folder = named(part, plan).folder
        assert (tmp_path / folder / "result.json").exists()
    record = json.loads(
        (
            tmp_path / named("cb-prompt-s0", plan).folder / "failed.json"
        ).read_text()
    )
    assert record["settings"]["task"] == "cb"
    assert record["when"].endswith("Z")
    assert "6 failed" in capsys.readouterr().err
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["done"], progress["failed"]) == (5, 6)
    write_report(tmp_path, tmp_path / "report")
    with open(tmp_path / "report" / "left_out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run_id"]: row["reason"] for row in rows} == found.failed
    assert {row["status"] for row in rows} == {"failed"}
    page = (tmp_path / "report" / "report.md").read_text()
    assert "5 runs are done, 6 failed" in page
    assert "| PoT: toy\\_acceptability | † | – |" in page
    # Left alone, then tried again: the culprits and what rests on them.
    before = len(begun(tmp_path))
    assert run_grid(Grid(**bad), tmp_path, **options).failed == found.failed
    assert len(begun(tmp_path)) == before
    again = run_grid(Grid(**bad), tmp_path, retry_failed=True, **options)
    assert again.failed == found.failed
    assert len(begun(tmp_path)) == before + len(culprits)


def test_a_lane_that_fails_costs_its_fleet_nothing(tmp_path):
    grid = {
        **SMALL,
        "methods": "prompt,control",
        "sources": (),
        "overrides": {"control": {"learning_rate": 1e30}},
    }
    plan = expand(Grid(**grid))
    found = run_grid(Grid(**grid), tmp_path, **QUICK)
    assert list(found.failed) == [named("toy_review-control-s0", plan).name]
    assert found.done == 1
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_damaged_prompt_fails_the_runs_that_start_from_it(copied):
    source = named("toy_sentiment-prompt-s0")
    weights = copied / source.folder / "prompt" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    found = run_grid(Grid(**SMALL), copied, **QUICK)
    pot = named("toy_review-pot-toy_sentiment-s0").name
    assert "adapter_model.safetensors" in found.failed[pot]
    assert len(found.failed) == 2
    assert found.done == 6


def test_a_source_that_becomes_a_target_is_not_trained_again(
    whole, copied, monkeypatch
):
    monkeypatch.setattr(runner, "train_fleet", lambda *given, **more: 1 / 0)
    grid = Grid(**{**SMALL, "targets": "toy_sentiment", "methods": "prompt"})
    found = run_grid(grid, copied, **QUICK)
    assert (found.total, found.done) == (2, 2)
    plan = expand(grid)
    both = named("toy_sentiment-prompt-s0", plan)
    assert both.roles == ("source", "prompt")
    assert both.folder != named("toy_sentiment-prompt-s0").folder
    assert table(copied, plan)[both.name] == table(whole)[both.name]
    bank = PromptBank(copied / "targets" / "random-bert-tiny" / "s0")
    assert bank.names == ["toy_sentiment"]
    # Nor where it is no target any more.
    shutil.rmtree(copied / named("toy_sentiment-prompt-s0").folder)
    grid = Grid(**{**SMALL, "targets": ()})
    assert run_grid(grid, copied, **QUICK).done == 2


def test_a_need_that_another_has_mended_dooms_nothing(copied, monkeypatch):
    """Read as failed at first, made meanwhile by one that tried again."""
    source = named("toy_sentiment-prompt-s0")
    result = copied / source.folder / "result.json"
    text = result.read_text()
    result.unlink()
    Ledger(PLAN, copied).fail(source, UserError("for a while"))
    real = Claims.take

    def late(self, name, **options):
        (copied / source.folder / "failed.json").unlink(missing_ok=True)
        result.write_text(text)
        return real(self, name, **options)

    monkeypatch.setattr(Claims, "take", late)
    found = run_grid(Grid(**SMALL), copied, **QUICK)
    assert not failed(copied)
    assert (found.done, found.failed) == (8, {})


def refusing(monkeypatch, error, *, when):
    """Lets `train_fleet` raise for some lanes; returns what it was given."""
    real, calls = runner.train_fleet, []

    def fails(backbone, lanes, **options):
        calls.append(list(lanes))
        if when(lanes):
            raise error
        return real(backbone, lanes, **options)

    monkeypatch.setattr(runner, "train_fleet", fails)
    return calls


def test_a_fleet_that_fails_as_one_is_made_run_by_run(copied, monkeypatch):
    error = RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    calls = refusing(monkeypatch, error, when=lambda lanes: len(lanes) > 1)
    found = run_grid(Grid(**SMALL), copied, **QUICK)
    assert (found.done, found.failed) == (8, {})
    assert [len(lanes) for lanes in calls] == [2, 1, 1] * 3


def test_any_error_of_a_run_is_its_reason_and_can_be_tried_again(
    copied, monkeypatch
):
    pot = named("toy_review-pot-toy_sentiment-s0")
    panda = named("toy_review-panda-toy_sentiment-s0")
    with monkeypatch.context() as patch:
        refusing(patch, RuntimeError("broken"), when=lambda x: pot.lane in x)
        found = run_grid(Grid(**SMALL), copied, **QUICK)
    assert found.failed == {
        pot.name: "RuntimeError: broken",
        panda.name: f"needs {pot.name}, which failed",
    }
    record = json.loads((copied / pot.folder / "failed.json").read_text())
    assert "in fails" in record["traceback"]
    again = run_grid(Grid(**SMALL), copied, retry_failed=True, **QUICK)
    assert (again.done, again.failed) == (8, {})
    assert not failed(copied)


def test_a_full_disk_is_no_run_s_failure(copied, monkeypatch):
    with monkeypatch.context() as patch:
        error = OSError(28, "No space left on device")
        refusing(patch, error, when=lambda lanes: True)
        with pytest.raises(OSError, match="No space"):
            run_grid(Grid(**SMALL), copied, **QUICK)
    assert not failed(copied)
    assert not Claims(copied / "claims").all(), "the claim was given up"
    assert run_grid(Grid(**SMALL), copied, **QUICK).done == 8


def test_no_room_for_a_checkpoint_is_no_run_s_failure(copied, monkeypatch):
    with monkeypatch.context() as patch:
        full = shutil.disk_usage(copied)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(StorageError, match="1000 bytes are free"):
            run_grid(Grid(**SMALL), copied, **QUICK)
    assert not failed(copied)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"backbones": "bert-large"}, {}, "no weights on this machine"),
        ({"backbones": "random:bert-tinny"}, {}, "bert-tiny"),
        ({}, {"data_dir": "nowhere"}, "'nowhere' is no folder"),
        ({}, {}, "'elsewhere' is no folder"),
    ],
)
def test_what_no_run_here_can_do_without_is_told_first(
    tmp_path, monkeypatch, change, options, words
):
    """A machine that lacks it would fail the runs of all who share a grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANDA_DATA_DIR", "elsewhere")
    with pytest.raises(UserError, match=words):
        run_grid(Grid(**{**SMALL, **change}), "grid", **QUICK, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_done_needs_neither_weights_nor_data(whole, monkeypatch):
    monkeypatch.setattr(runner, "check_here", lambda name: 1 / 0)
    found = run_grid(Grid(**SMALL), whole, data_dir="nowhere", **QUICK)
    assert found.done == 8


def test_banks_hold_the_prompts_of_runs_that_are_done(tmp_path):
    """A run has a prompt from its first evaluation on."""
    run = named("toy_sentiment-prompt-s0")
    link = tmp_path / run.bank("source")
    (tmp_path / run.folder / "prompt").mkdir(parents=True)
    (tmp_path / run.folder / "prompt" / "panda.json").write_text("{}")
    ledger = Ledger(PLAN, tmp_path)
    ledger.link_prompts(PLAN.runs)
    assert not link.exists()
    (tmp_path / run.folder / "result.json").write_text("{}")
    Ledger(PLAN, tmp_path).link_prompts(PLAN.runs)
    assert PromptBank(link.parent).names == ["toy_sentiment"]
    # What another grid has made here of other settings is no longer the one.
    other = expand(Grid(**{**SMALL, "settings": {"epochs": 1}}))
    Ledger(other, tmp_path).link_prompts(other.runs)
    assert not link.is_symlink()


def test_checkpoints_that_a_kill_left_are_removed(whole):
    (group, *_) = PLAN.groups
    left = whole / "runs" / group.name / "checkpoints" / "7"
    left.mkdir(parents=True)
    run_grid(Grid(**SMALL), whole, **QUICK)
    assert not left.parent.exists()


def test_a_retry_that_is_killed_has_still_failed(tmp_path, monkeypatch):
    """Or its checkpoint would be gone on from, and the failure in it."""
    run = named("toy_sentiment-prompt-s0")
    Ledger(PLAN, tmp_path).fail(run, UserError("diverged"))
    checkpoints = tmp_path / "runs" / run.fleet / "checkpoints"
    checkpoints.mkdir()
    real = shutil.rmtree

    def dies(path, **options):
        real(path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            Ledger(PLAN, tmp_path, retry_failed=True).begin_again([run])
    assert not checkpoints.exists()
    assert Ledger(PLAN, tmp_path).state(run) == "failed"


def test_asked_to_end_it_ends(copied, monkeypatch):
    refusing(monkeypatch, InterruptedRun("Ended"), when=lambda lanes: True)
    with pytest.raises(InterruptedRun):
        run_grid(Grid(**SMALL), copied, **QUICK)
    assert not failed(copied)
    assert not Claims(copied / "claims").all()


def test_a_fleet_that_grew_meanwhile_begins_anew(copied, monkeypatch):
    """Checkpoints of fewer lanes are of no use to more."""
    real, saves = trainer.Trainer._save, []

    def dies(self, checkpoints, states):
        real(self, checkpoints, states)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_save", dies)
        with pytest.raises(KeyboardInterrupt):
            run_grid(Grid(**{**SMALL, "methods": "prompt"}), copied, **QUICK)
    assert len(list(copied.rglob("checkpoints"))) == 1
    found = run_grid(
        Grid(**{**SMALL, "methods": "prompt,control"}), copied, **QUICK
    )
    assert (found.done, found.failed) == (4, {})


def test_killed_between_two_results_the_rest_only_finish(
    whole, copied, monkeypatch
):
    """The checkpoint is of all lanes, and one of them is done."""
    real, finished = lane.Lane.finish, []

    def dies(self, **values):
        if finished:
            raise KeyboardInterrupt
        finished.append(self.run_id)
        return real(self, **values)

    grid = Grid(**{**SMALL, "methods": "prompt,control"})
    with monkeypatch.context() as patch:
        patch.setattr(lane.Lane, "finish", dies)
        with pytest.raises(KeyboardInterrupt):
            run_grid(grid, copied, **QUICK)
    assert Ledger(expand(grid), copied).counts()["done"] == 2 + 1
    # Nothing is trained again.
    monkeypatch.setattr(trainer.Trainer, "_stretch", lambda *given: 1 / 0)
    found = run_grid(grid, copied, **QUICK)
    assert (found.done, found.failed) == (4, {})
    plan = expand(grid)
    assert table(copied, plan) == {
        run.name: table(whole)[run.name] for run in plan.runs
    }


def test_work_that_was_taken_over_is_left_to_the_other(copied, monkeypatch):
    """And made after all, where the other falls silent too."""
    real, calls = runner.train_fleet, []

    def slow(backbone, lanes, **options):
        calls.append(list(lanes))
        if len(calls) == 1:
            (group,) = (g for g in PLAN.groups if g.runs[0].lane in lanes)
            (copied / "claims" / group.name / "1").mkdir()
            time.sleep(60)
        return real(backbone, lanes, **options)

    monkeypatch.setattr(runner, "train_fleet", slow)
    # As in the background of a script.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = run_grid(Grid(**SMALL), copied, **QUICK, stale_seconds=0.5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (found.done, found.failed) == (8, {})
    # The first once more, when what another can do is done.
    assert [len(lanes) for lanes in calls] == [2] * 4
    assert calls.count(calls[0]) == 2


def test_the_time_left_is_that_of_like_runs(tmp_path):
    ledger = Ledger(PLAN, tmp_path)
    assert ledger.seconds_left(1) is None
    for part, seconds in (
        ("toy_sentiment-prompt-s0", 10.0),
        # A fleet's runs each have all of its time.
        ("toy_review-prompt-s0", 30.0),
        ("toy_review-control-s0", 30.0),
        ("toy_review-pot-toy_sentiment-s0", 100.0),
    ):
        folder = tmp_path / named(part).folder
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"seconds": seconds}))
    ledger = Ledger(PLAN, tmp_path)
    # A source, a PoT, and two PANDA at the pace of all.
    expected = 40 / 3 + 100 + 2 * 140 / 4
    assert ledger.seconds_left(1) == pytest.approx(expected)
    assert ledger.seconds_left(2) == pytest.approx(expected / 2)
    assert [runner.spoken(s) for s in (5, 600, 7200)] == [
        "5 s",
        "10 min",
        "2.0 h",
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    # Six of 40 rows; two sources of 400 took 100 s each, or of nobody knows.
    [(400, 6 * 100 / 10), (None, 6 * 100)],
)
def test_the_time_left_is_by_rows_where_they_are_known(
    tmp_path, rows, expected
):
    changed = {"source": {"train_examples": rows}}
    plan = expand(Grid(**{**SMALL, "overrides": changed}))
    for run in plan.runs:
        if run.roles == ("source",):
            (tmp_path / run.folder).mkdir(parents=True)
            path = tmp_path / run.folder / "result.json"
            path.write_text('{"seconds": 100.0}')
    found = Ledger(plan, tmp_path).seconds_left(1)
    assert found == pytest.approx(expected)


def test_a_wrong_shard_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="shard"):
        run_grid(Grid(**SMALL), tmp_path / "new", shard="3/2")
    assert not pathlib.Path(tmp_path / "new").exists()
