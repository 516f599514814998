"""Folders: what a verb wrote there is its, and all else is the user's."""

import errno
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading

import killed_writer
import kills
import made_up_bank
import made_up_runs
import numpy as np
import pytest
from command_line import mistake

import panda_jax as pj
from panda_jax import cli
from panda_jax.errors import UserError
from panda_jax.io import claims, files, ownership
from panda_jax.io.ownership import LISTING, Listing, replacing, writing
from panda_jax.training import lane, run_folder, trainer

SMALL = {
    "task": "toy_review",
    "max_length": 16,
    "batch_size": 8,
    "train_examples": 16,
    "eval_examples": 16,
    "epochs": 1,
    "quiet": True,
}


def write(folder: pathlib.Path, texts: dict[str, str], verb="report", **how):
    with writing(folder, verb, **how) as new:
        for name, text in texts.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(text)


def replace(folder: pathlib.Path, texts: dict[str, str], verb="import", **how):
    with replacing(folder, verb, **how) as new:
        for name, text in texts.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(text)


def texts(folder: pathlib.Path) -> dict[str, str]:
    """Every file but listings, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LISTING
    }


BOTH = pytest.mark.parametrize("put", [write, replace])


@BOTH
def test_what_a_verb_wrote_it_may_replace(put, tmp_path):
    out = tmp_path / "out"
    put(out, {"a": "1", "b/c": "2"})
    put(out, {"a": "3", "b/c": "4"})
    assert texts(out) == {"a": "3", "b/c": "4"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@BOTH
def test_a_file_of_the_user_s_is_named_and_left(put, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("mine")
    (out / "notes").write_text("mine too")
    with pytest.raises(UserError, match="holds a, which panda-jax .* did not"):
        put(out, {"a": "1", "b": "2"})
    assert texts(out) == {"a": "mine", "notes": "mine too"}
    put(out, {"b": "2"})
    assert texts(out) == {"a": "mine", "b": "2", "notes": "mine too"}
    put(out, {"a": "1", "b": "2"}, overwrite=True)
    assert texts(out) == {"a": "1", "b": "2", "notes": "mine too"}


@BOTH
def test_an_edited_file_is_the_user_s(put, tmp_path):
    put(tmp_path / "out", {"a": "1"})
    (tmp_path / "out" / "a").write_text("2")  # of the same size
    with pytest.raises(UserError, match="holds a,"):
        put(tmp_path / "out", {"a": "3"})
    assert texts(tmp_path / "out") == {"a": "2"}


@BOTH
def test_what_is_the_same_is_in_nobody_s_way(put, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("1")
    put(tmp_path / "out", {"a": "1"})


@BOTH
def test_another_verb_s_file_is_in_the_way(put, tmp_path):
    put(tmp_path, {"a": "1"}, verb="train")
    with pytest.raises(UserError, match="written by panda-jax train: it is"):
        put(tmp_path, {"a": "2"}, verb="score")


def test_a_link_is_the_user_s(tmp_path):
    write(tmp_path / "out", {"a": "1"})
    (tmp_path / "real").write_text("1")
    (tmp_path / "out" / "a").unlink()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "real")
    with pytest.raises(UserError, match="holds a,"):
        write(tmp_path / "out", {"a": "2"})
    assert (tmp_path / "real").read_text() == "1"


@BOTH
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_file_to_replace(put, tmp_path, overwrite):
    (tmp_path / "out" / "a").mkdir(parents=True)
    (tmp_path / "out" / "a" / "x").write_text("mine")
    with pytest.raises(UserError, match="holds a folder a"):
        put(tmp_path / "out", {"a": "1"}, overwrite=overwrite)
    assert texts(tmp_path / "out") == {"a/x": "mine"}


@BOTH
def test_a_file_in_the_place_of_the_folder(put, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file: give a folder"):
        put(tmp_path / "out", {"a": "1"}, overwrite=True)


@BOTH
def test_what_fails_leaves_nothing(put, tmp_path):
    def fails(folder):
        with (replacing if put is replace else writing)(folder, "report") as n:
            (n / "a").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    put(tmp_path / "old", {"a": "1"}, verb="report")
    with pytest.raises(KeyboardInterrupt):
        fails(tmp_path / "old")
    assert texts(tmp_path) == {"old/a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"report"', '"import"'),
        lambda text: text.replace('"files"', '"flies"'),
        lambda text: text[:-9],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"files": {"a": {"by": "report", "versions": []}}}',
    ],
)
def test_an_edited_listing_is_none(tmp_path, change):
    write(tmp_path, {"a": "1"})
    text = (tmp_path / LISTING).read_text()
    (tmp_path / LISTING).write_text(change(text))
    with pytest.raises(UserError, match=f"holds {LISTING}"):
        write(tmp_path, {"a": "2"})
    assert texts(tmp_path) == {"a": "1"}
    write(tmp_path, {"a": "2"}, overwrite=True)
    write(tmp_path, {"a": "3"})


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a/grows", ""])
def test_a_listing_names_nothing_outside(tmp_path, name):
    """Anybody can seal one, and its folder may come from anywhere."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "x").write_text("mine")
    entry = ownership.Entry("train")
    if name != "a/grows":
        entry = ownership.Entry(
            "train", (ownership.Version.of(tmp_path / "x"),)
        )
    Listing({name: entry}).write(out)
    assert Listing.read(out) is None


def test_a_listing_leads_nowhere_by_a_link(tmp_path):
    out, home = tmp_path / "out", tmp_path / "home"
    home.mkdir()
    (home / "x").write_text("mine")
    write(out, {"d/x": "mine"}, verb="train")
    (out / "d" / "x").unlink()
    (out / "d").rmdir()
    (out / "d").symlink_to(home)
    ownership.remove(out, "train")
    assert texts(home) == {"x": "mine"}


def test_only_what_it_wrote_itself_is_removed(tmp_path):
    write(tmp_path, {"a": "1", "b": "1", "c": "1"})
    write(tmp_path, {"d": "1"}, verb="score")
    (tmp_path / "b").write_text("edited")
    write(tmp_path, {"c": "2"}, removes=True)
    assert texts(tmp_path) == {"b": "edited", "c": "2", "d": "1"}


def test_what_would_be_gone_with_its_folder_is_named(tmp_path):
    replace(tmp_path / "out", {"a": "1", "b": "1"})
    with pytest.raises(UserError, match="holds b,"):
        replace(tmp_path / "out", {"a": "2"})
    replace(tmp_path / "out", {"a": "2"}, overwrite=True)
    assert texts(tmp_path / "out") == {"a": "2"}


def test_what_the_user_adds_to_a_folder_goes_along(tmp_path):
    out = tmp_path / "out"
    replace(out, {"a": "1"})
    (out / "mine" / "deep").mkdir(parents=True)
    (out / "mine" / "deep" / "x").write_text("x")
    (out / "link").symlink_to("nowhere")
    write(out, {"p": "1"}, verb="predict")
    replace(out, {"a": "2"})
    assert texts(out) == {"a": "2", "mine/deep/x": "x", "p": "1"}
    assert os.readlink(out / "link") == "nowhere"
    write(out, {"p": "2"}, verb="predict")


def test_a_folder_of_the_user_s_is_never_exchanged(tmp_path):
    """It may be open in a shell, a mount, or a home."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    number = out.stat().st_ino
    for turn in "12":
        replace(out, {"a": turn})
        assert out.stat().st_ino == number
    assert texts(out) == {"a": "2", "mine": "x"}


def test_nor_is_the_one_that_this_process_is_in(tmp_path, monkeypatch):
    replace(tmp_path / "out", {"a": "1"})
    monkeypatch.chdir(tmp_path / "out")
    replace(pathlib.Path(), {"a": "2"})
    assert pathlib.Path("a").read_text() == "2"


def test_a_link_to_a_folder_stays_one(tmp_path):
    replace(tmp_path / "real", {"a": "1"})
    (tmp_path / "link").symlink_to("real")
    replace(tmp_path / "link", {"a": "2"})
    assert (tmp_path / "link").is_symlink()
    assert texts(tmp_path / "real") == {"a": "2"}


# Killed.

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["killed_writer"])


def killed(what: str, out: pathlib.Path, at: int, *, swaps: bool) -> bool:
    """Whether it was, before it came to its end."""
    process = _FORKS.Process(
        target=killed_writer.write,
        args=(what, str(out), at),
        kwargs={"swaps": swaps},
    )
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize(
    ("what", "swaps"),
    [("writing", True), ("replacing", True), ("replacing", False)],
)
def test_killed_at_any_step_it_is_old_or_new_and_goes_on(tmp_path, what, swaps):
    """Also where the system cannot exchange two folders."""
    put, number = (write if what == "writing" else replace), 0
    while True:
        number += 1
        out = tmp_path / str(number) / "out"
        put(out, {"a": "old a", "b": "old b"}, verb="import")
        (out / "mine").write_text("mine")
        was = killed(what, out, number, swaps=swaps)
        displaced = list(out.parent.glob(".out.old.*/out"))
        there = out if out.exists() else displaced[0]
        found = {n: (there / n).read_text() for n in "ab"}
        both = [{n: f"{x} {n}" for n in "ab"} for x in ("old", "new")]
        if what == "replacing":
            assert found in both
        else:
            assert all(found[n] in [x[n] for x in both] for n in "ab")
        assert (there / "mine").read_text() == "mine"
        # Whatever is left is ours: the next one takes it for that.
        put(out, {"a": "3", "b": "4"}, verb="import")
        assert texts(out.parent) == {
            "out/a": "3",
            "out/b": "4",
            "out/mine": "mine",
        }
        assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
        if not was:
            break
    assert number > 8, "it took more steps than that"


def test_a_listing_that_was_written_first_takes_no_file_of_the_user_s(
    tmp_path,
):
    """Killed behind it, and before the file; then the user makes one."""
    out = tmp_path / "out"
    write(out, {"a": "1"})
    listing = Listing.read(out)
    assert listing is not None
    entry = ownership.Entry("report", (ownership.Version.of(out / "a"),))
    Listing({**listing.files, "b": entry}).write(out)
    (out / "b").write_text("2")
    with pytest.raises(UserError, match="holds b,"):
        write(out, {"b": "3"})


def test_what_another_is_about_to_put_there_is_not_swept(tmp_path):
    out = tmp_path / "out"
    replace(out, {"a": "1"})
    inside, leave = threading.Event(), threading.Event()

    def slow():
        with replacing(out, "import") as new:
            (new / "a").write_text("slow")
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=slow)
    thread.start()
    assert inside.wait(10)
    replace(out, {"a": "2"})
    leave.set()
    thread.join()
    assert texts(out) == {"a": "slow"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_without_exchanges(tmp_path, monkeypatch):
    """`renameat2` says so; what else it says is an error."""
    replace(tmp_path / "out", {"a": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(files, "_renameat2", lambda *_: False)
        replace(tmp_path / "out", {"a": "2"})
    assert texts(tmp_path) == {"out/a": "2"}
    with pytest.raises(FileNotFoundError) as error:
        files.exchange(tmp_path / "none", tmp_path / "out")
    assert error.value.errno == errno.ENOENT


# Every verb.


@pytest.fixture(scope="module")
def bank(tiny, tmp_path_factory) -> pathlib.Path:
    return made_up_bank.write(tmp_path_factory.mktemp("banks") / "bank", tiny)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    pj.train(tiny, model_dir=folder, **SMALL)
    return folder


def _verbs(bank: pathlib.Path, root: pathlib.Path) -> list[list[str]]:
    (root / "rows.jsonl").write_text('{"sentence": "It was late."}\n')
    np.save(root / "mrpc.npy", np.ones((4, 8), np.float32))
    made_up_runs.write_run(root / "runs", "a", value=0.5)
    names = [f"{a},{b},0.{len(a)}" for a in ("x", "yy", "zzz") for b in "vw"]
    (root / "truth.csv").write_text(
        "\n".join(["source,target,score", *names]) + "\n"
    )
    (root / "scores.csv").write_text(
        "\n".join(["source,target,score,metric", *[f"{n},on" for n in names]])
    )
    prompt = bank / "toy_review"
    return [
        ["import", "npy", str(root / "mrpc.npy"), "--out_dir=OUT"],
        ["export", "peft", str(prompt), "--out_dir=OUT"],
        ["export", "peft", str(bank), "--out_dir=OUT"],
        ["score", f"--sources={bank}", "--metrics=e_avg", "--out_dir=OUT"],
        ["report", f"--runs={root}/runs", "--resamples=5", "--out_dir=OUT"],
        [
            "evaluate-ranking",
            f"--scores={root}/scores.csv",
            f"--truth={root}/truth.csv",
            "--resamples=5",
            "--permutations=5",
            "--out_dir=OUT",
        ],
        [
            "tasks",
            "toy_review",
            "--backbone=random:bert-tiny",
            "--markdown=OUT/page.md",
        ],
        [
            "predict",
            f"--prompt={prompt}",
            f"--input={root}/rows.jsonl",
            "--out_dir=OUT",
        ],
    ]


def test_every_verb_leaves_what_it_did_not_write(bank, tmp_path, capsys):
    for number, argv in enumerate(_verbs(bank, tmp_path)):
        out = tmp_path / f"out{number}"
        argv = [word.replace("OUT", str(out)) for word in argv]
        assert cli.main(argv) == 0, argv
        assert cli.main(argv) == 0, "its own files are in nobody's way"
        names = sorted(p for p in out.rglob("*") if p.is_file())
        (mine,) = [p for p in names if p.name != LISTING][:1]
        mine.write_bytes(b"edited")
        (out / "notes.md").write_text("mine")
        message = mistake(capsys, *argv)
        assert mine.relative_to(out).as_posix() in message
        assert "--overwrite" in message
        assert mine.read_bytes() == b"edited"
        assert cli.main([*argv, "--overwrite=true"]) == 0
        assert mine.read_bytes() != b"edited"
        assert (out / "notes.md").read_text() == "mine"


def test_a_report_deletes_no_file_that_a_list_names(tmp_path, monkeypatch):
    """`files.txt` was the list of release 0.1; anybody may have one."""
    made_up_runs.write_run(tmp_path / "runs", "a", value=0.5)
    (tmp_path / "files.txt").write_text("notes.md\n")
    (tmp_path / "notes.md").write_text("mine")
    monkeypatch.chdir(tmp_path)
    argv = ["report", "--runs=runs", "--out_dir=.", "--resamples=5"]
    assert cli.main(argv) == 0
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert (tmp_path / "files.txt").read_text() == "notes.md\n"
    assert cli.main(argv) == 0


def test_a_report_of_release_0_1_asks_before_it_is_replaced(tmp_path, capsys):
    made_up_runs.write_run(tmp_path / "runs", "a", value=0.5)
    out = tmp_path / "out"
    argv = ["report", f"--runs={tmp_path}/runs", f"--out_dir={out}"]
    assert cli.main([*argv, "--resamples=5"]) == 0
    (out / LISTING).unlink()
    (out / "files.txt").write_text("report.md\nold.csv\nruns.csv\n")
    (out / "old.csv").write_text("x")
    made_up_runs.write_run(tmp_path / "runs", "b", value=0.75)
    before = texts(out)
    assert "report.md" in mistake(capsys, *argv, "--resamples=5")
    assert texts(out) == before
    assert cli.main([*argv, "--resamples=5", "--overwrite=true"]) == 0
    assert (out / "old.csv").exists()


def test_an_import_does_not_replace_a_run_s_prompt(trained, tmp_path, capsys):
    np.save(tmp_path / "mrpc.npy", np.ones((4, 8), np.float32))
    before = {p: p.read_bytes() for p in (trained / "prompt").iterdir()}
    message = mistake(
        capsys,
        "import",
        "npy",
        str(tmp_path / "mrpc.npy"),
        f"--out_dir={trained}/prompt",
    )
    assert "written by panda-jax train" in message
    assert {p: p.read_bytes() for p in (trained / "prompt").iterdir()} == before


def test_a_run_does_not_replace_the_settings_it_is_made_of(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    lines = [f"train.{n} = {x!r}" for n, x in SMALL.items() if n != "quiet"]
    text = "# By hand.\n" + "\n".join(lines) + "\n"
    (mine / "config.gin").write_text(text)
    argv = [
        "train",
        f"--gin_file={mine}/config.gin",
        "--backbone=random:bert-tiny",
        f"--model_dir={mine}",
    ]
    assert "holds config.gin" in mistake(capsys, *argv)
    assert texts(mine) == {"config.gin": text}
    assert sorted(p.name for p in mine.iterdir()) == ["config.gin"]


def test_notes_in_the_settings_of_a_run_that_goes_on_stay(
    trained, tiny, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "result.json").unlink()
    text = "# My best one.\n" + (run / "config.gin").read_text()
    (run / "config.gin").write_text(text)
    pj.train(tiny, model_dir=run, **SMALL)
    assert (run / "config.gin").read_text() == text


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "prompt"])
def test_a_run_takes_nothing_of_the_user_s_for_its_own(tiny, tmp_path, name):
    place = tmp_path / name
    if name == "metrics.jsonl":
        place.write_text("mine")
    else:
        (place / "7").mkdir(parents=True)
        (place / "panda.json").write_text("mine")
    with pytest.raises(UserError, match="holds"):
        pj.train(tiny, model_dir=tmp_path, **SMALL)
    assert list(texts(tmp_path).values()) == ["mine"]


def test_a_fleet_takes_no_folder_of_the_user_s_for_its_own(tiny, tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints" / "7" / "x").write_text("mine")
    settings = {n: x for n, x in SMALL.items() if n != "quiet"}
    with pytest.raises(UserError, match="holds a folder checkpoints"):
        pj.train_fleet(tiny, {"a": settings}, out_dir=tmp_path, quiet=True)
    assert (tmp_path / "checkpoints" / "7" / "x").read_text() == "mine"


def test_a_run_of_release_0_1_is_taken_over(trained, tiny, tmp_path):
    """It has no listing; it is known by what its files say."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in (LISTING, f"prompt/{LISTING}", "result.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    pj.train(tiny, model_dir=run, **SMALL)
    listing = Listing.read(run / "prompt")
    assert listing is not None
    assert listing.whole == "train"
    one, other = (
        json.loads((folder / "result.json").read_text())
        for folder in (trained, run)
    )
    assert one["best"] == other["best"]


def test_a_prompt_that_another_put_there_is_not_taken_over(
    trained, bank, tiny, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "prompt")
    shutil.copytree(bank / "toy_sentiment", run / "prompt")
    (run / "prompt" / LISTING).unlink()
    (run / LISTING).unlink()
    with pytest.raises(UserError, match="prompt' holds panda.json"):
        pj.train(tiny, model_dir=run, **SMALL)


def test_a_run_that_begins_anew_leaves_the_user_s_files(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for place in (run, run / "prompt"):
        (place / "notes").write_text("mine")
    (run / "config.gin").write_text("edited")
    run_folder.clear(run)
    assert texts(run) == {
        "config.gin": "edited",
        "notes": "mine",
        "prompt/notes": "mine",
    }
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    # Of release 0.1.
    for name in (LISTING, f"prompt/{LISTING}"):
        (other / name).unlink()
    run_folder.clear(other)
    assert not other.exists()


def test_a_user_s_link_in_a_grid_s_bank_stays(tmp_path):
    from panda_jax.experiments.grid.grid import Grid, expand
    from panda_jax.experiments.grid.ledger import Ledger

    plan = expand(
        Grid(
            backbones=("random:bert-tiny",),
            sources=("toy_sentiment",),
            targets=("toy_review",),
            methods=("pot",),
        )
    )
    (source,) = [run for run in plan.runs if "source" in run.roles]
    link = tmp_path / source.bank("source")
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine", target_is_directory=True)
    Ledger(plan, tmp_path).link_prompts(plan.runs)
    assert os.readlink(link) == str(tmp_path / "mine")


@pytest.mark.parametrize("name", ["grid.json", "progress.json"])
def test_a_grid_replaces_no_file_of_the_user_s(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    message = mistake(
        capsys,
        "grid",
        f"--out_dir={tmp_path}",
        "--backbones=random:bert-tiny",
        "--targets=toy_review",
        "--methods=prompt",
        "--settings={}",
    )
    assert f"holds {name}" in message
    assert texts(tmp_path) == {name: "mine"}


def test_a_tuned_backbone_and_its_prompt_change_at_once(
    tiny, tmp_path, monkeypatch
):
    """Killed at any exchange, both are of one evaluation."""
    run, real, seen = tmp_path / "run", files.exchange, []

    def looks(new, path):
        seen.append(pair(run))
        real(new, path)
        seen.append(pair(run))

    monkeypatch.setattr(files, "exchange", looks)
    monkeypatch.setattr(lane.Lane, "is_better", lambda self, found: True)
    settings = {**SMALL, "epochs": 2, "learning_rate": 1e-3}
    done = pj.train(tiny, method="model", model_dir=run, **settings)
    seen.append(pair(run))
    assert len(seen) == 3
    assert all(prompt == model for prompt, model in seen)
    assert len({prompt for prompt, _ in seen}) == 2
    assert (run / "model").is_symlink()
    assert done.prompt.info.fingerprint == seen[-1][1]


def pair(run: pathlib.Path) -> tuple[str | None, str]:
    """The fingerprint that the prompt names, and the backbone's."""
    found = pj.load_prompt(run).info.fingerprint
    return found, pj.load_backbone(str(run / "model")).fingerprint


def test_a_tuned_backbone_of_release_0_1(tiny, tmp_path, monkeypatch):
    """It lay beside the prompt."""
    run = tmp_path / "run"
    settings = {**SMALL, "method": "model", "learning_rate": 1e-3}
    pj.train(tiny, model_dir=run, **settings)
    before = pair(run)
    (run / "model").unlink()
    (run / "prompt" / "model").rename(run / "model")
    (run / "model" / "notes").write_text("mine")
    for name in (LISTING, f"prompt/{LISTING}", "result.json"):
        (run / name).unlink()
    pj.train(tiny, model_dir=run, **settings)
    assert pair(run) == before
    assert (run / "model").is_symlink()
    assert (run / "model" / "notes").read_text() == "mine"
    assert not list(run.glob(".model.*"))


def test_on_a_disk_without_links_the_backbone_is_a_copy(
    tiny, tmp_path, monkeypatch
):
    def fails(*unused, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(pathlib.Path, "symlink_to", fails)
    run = tmp_path / "run"
    settings = {**SMALL, "method": "model", "learning_rate": 1e-3}
    pj.train(tiny, model_dir=run, **settings)
    prompt, model = pair(run)
    assert prompt == model
    assert not (run / "model").is_symlink()


@pytest.mark.parametrize("done", [False, True])
def test_what_release_0_1_left_of_an_exchange_is_put_back(
    trained, tiny, tmp_path, done
):
    """By a training run, or by an import over a finished run's prompt."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    if not done:
        (run / "result.json").unlink()
    for name in (LISTING, f"prompt/{LISTING}"):
        (run / name).unlink()
    old = run / ".prompt.old.x8_y"
    old.mkdir()
    (run / "prompt").rename(old / "prompt")
    pj.train(tiny, model_dir=run, **SMALL)
    assert pj.load_prompt(run).info.task == "toy_review"
    assert not list(run.glob(".prompt*"))


def test_what_is_left_of_a_process_killed_at_its_very_end_goes(
    trained, tiny, tmp_path
):
    """Its result was there, and it still held the folder."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = sorted(run.rglob("*"))
    staged = run / f".panda_jax.{files._machine()}01234567"
    staged.mkdir()
    (staged / "result.json").write_text("{}")
    (run / ".result.json.0123456789ab.json").write_text("{}")
    held = claims.Claims(run).take(claims.LOCK)
    assert held is not None
    pj.train(tiny, model_dir=run, **SMALL)
    assert staged.exists()  # somebody is at work there
    held.release()
    pj.train(tiny, model_dir=run, **SMALL)
    assert sorted(run.rglob("*")) == before


def test_two_runs_on_one_folder(tiny, trained, tmp_path):
    """One trains; the other says who holds it, and harms nothing."""
    run = tmp_path / "run"
    with claims.alone(run, done=bool):
        with pytest.raises(UserError, match="is held by process"):
            pj.train(tiny, model_dir=run, **SMALL)
        assert [path.name for path in run.iterdir()] == [claims.LOCK]
    pj.train(tiny, model_dir=run, **SMALL)
    assert claims.LOCK not in [path.name for path in run.iterdir()]


def test_a_run_that_was_taken_over_ends(tiny, tmp_path, monkeypatch):
    real = trainer.Trainer._save

    def lost(self, *given):
        self.lanes[0].claim.lost = True
        real(self, *given)

    monkeypatch.setattr(trainer.Trainer, "_save", lost)
    with pytest.raises(UserError, match="was taken over by another process"):
        pj.train(tiny, model_dir=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run" / "result.json").exists()
    assert (tmp_path / "run" / claims.LOCK).exists()


def test_a_few_kills(tmp_path):
    """A few moments of what `python tests/kills.py` does by hundreds."""
    only = ("train --method=finetune", "import", "export")
    found = kills.run(tmp_path, moments=3, number=1, seed=3, only=only)
    assert [each["moments"] for each in found["kills"]] == [1] * 3


def test_what_another_machine_is_making_is_left_for_a_day(tmp_path):
    """Whether it lives cannot be seen here, but by who holds the folder."""
    out = tmp_path / "out"
    replace(out, {"a": "1"})
    number = int(files._machine(), 16) ^ 1
    other = tmp_path / f".out.{number:04x}00000000"
    other.mkdir()
    replace(out, {"a": "2"})
    assert other.exists()
    os.utime(other, (0, 0))
    replace(out, {"a": "3"})
    assert not other.exists()
    other.mkdir()
    ownership.tidy(out, alone=True)
    assert not other.exists()
