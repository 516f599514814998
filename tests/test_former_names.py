"""What 0.1 called `model` and `ours`: accepted, and in ids and folders."""

import json
import pathlib
import shutil

import pytest

import panda_jax as pj
from panda_jax import cli
from panda_jax.cli.default_folder import default_folder
from panda_jax.config import runs, settings
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.experiments.report.results import read_results
from panda_jax.training import evaluation, identity

SMALL = {
    "steps": 2,
    "train_examples": 16,
    "eval_examples": 16,
    "batch_size": 8,
    "max_length": 32,
}
GRID = {
    "sources": "cb",
    "targets": "rte",
    "backbones": "random:bert-tiny",
    "settings": {"epochs": 2},
}
THEN = {
    "methods": "model,panda",
    "recipes": "paper,ours",
    "overrides": {"model rte": {"epochs": 3}, "ours": {"temperature": 4.0}},
}
NOW = {
    "methods": "finetune,panda",
    "recipes": "paper,kl",
    "overrides": {"finetune rte": {"epochs": 3}, "kl": {"temperature": 4.0}},
}


@pytest.mark.parametrize(
    ("then", "now", "run_id", "grid_id"),
    [
        (
            {"method": "model"},
            {"method": "finetune"},
            "cb-model-s0-cfc6e1a09c",
            "64c59e63be",
        ),
        (
            {"method": "model", "optimizer": "adafactor"},
            {"method": "finetune", "optimizer": "adafactor"},
            "cb-model-s0-ff54a12fd2",
            "75e0a99e1f",
        ),
        (
            {"method": "panda", "recipe": "ours", "temperature": 4.0},
            {"method": "panda", "recipe": "kl", "temperature": 4.0},
            "cb-panda-s0-f29575c90c",
            "151608208d",
        ),
    ],
)
def test_the_ids_are_what_they_were(then, now, run_id, grid_id):
    """The pinned ones were computed before the names were changed."""
    one, two = (runs.make_run(task="cb", **each) for each in (then, now))
    assert one == two
    assert (one.method, one.recipe) == (
        now["method"],
        now.get("recipe", "paper"),
    )
    assert identity.run_id(one, {}, None) == run_id
    assert identity.grid_id(one, {}) == grid_id
    assert settings.used(then, runs.DEFAULTS) == settings.used(
        now, runs.DEFAULTS
    )


def test_a_grid_s_ids_and_folders_are_what_they_were():
    one, two = (expand(Grid(**GRID, **each)) for each in (THEN, NOW))
    assert one == two
    found = {run.kind: (run.folder, run.id) for run in two.runs}
    assert found["finetune"] == (
        "runs/random-bert-tiny-rte-model-0c3e82b5/"
        "random-bert-tiny-rte-model-s0-86fbc7af3a",
        "86fbc7af3a",
    )
    assert found["panda-kl"] == (
        "runs/random-bert-tiny-rte-panda-d83c7fdf/"
        "random-bert-tiny-rte-panda-ours-cb-s0-7920823661",
        "7920823661",
    )
    assert two.by_id["86fbc7af3a"].run.epochs == 3
    assert two.by_id["7920823661"].run.temperature == 4.0


def test_words_of_0_1_and_of_now_may_not_contradict():
    both = {"finetune": {"epochs": 3}, "model": {"epochs": 4}}
    grid = Grid(**GRID, methods="finetune", overrides=both)
    with pytest.raises(pj.UserError, match="for the same runs"):
        expand(grid)
    with pytest.raises(pj.UserError, match="holds 'finetune' twice"):
        Grid(**GRID, methods="finetune,model")


@pytest.mark.parametrize(
    ("flags", "bound"),
    [
        (["--method=model"], []),
        (["--method=finetune"], []),
        ([], ["--gin.train.method='model'"]),
        ([], ["--gin_file=methods/model.gin", "--epochs=None"]),
    ],
)
def test_the_command_line_takes_both(flags, bound):
    argv = ["--task=cb", *flags, *bound]
    args, _, _ = cli.resolve("train", argv)
    assert args.method == "finetune"
    if flags:
        assert default_folder(args) == "runs/cb-model-s0-01597cd4"


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of a tuned model."""
    folder = tmp_path_factory.mktemp("done") / "run"
    pj.train(
        tiny,
        task="toy_review",
        method="finetune",
        model_dir=folder,
        quiet=True,
        **SMALL,
    )
    return folder


def test_new_files_say_the_new_names(done):
    for name in ("result.json", "prompt/panda.json"):
        assert json.loads((done / name).read_text())["method"] == "finetune"
    about = json.loads((done / "run.json").read_text())
    assert about["settings"]["method"] == "finetune"
    assert about["run_id"].startswith("toy_review-model-s0-")
    assert "train.method = 'finetune'" in (done / "config.gin").read_text()


def as_of_0_1(folder: pathlib.Path) -> None:
    """Files that say the former name, and carry no hashes."""
    for name in ("run.json", "result.json", "prompt/panda.json"):
        path = folder / name
        value = json.loads(path.read_text())
        for hashed in ("hash", "run_hash", "prompt_hash"):
            value.pop(hashed, None)
        for part in (value, value.get("settings", {})):
            if "method" in part:
                part["method"] = "model"
        path.write_text(json.dumps(value))


@pytest.mark.parametrize("name", ["model", "finetune"])
def test_a_folder_that_says_the_former_name_goes_on(tiny, done, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(done, run, symlinks=True)
    as_of_0_1(run)
    again = pj.train(
        tiny,
        task="toy_review",
        method=name,
        model_dir=run,
        quiet=True,
        **SMALL,
    )
    assert again.result == json.loads((run / "result.json").read_text())
    with pytest.raises(pj.UserError, match="'finetune' there, 'prompt' now"):
        pj.train(tiny, task="toy_review", model_dir=run, **SMALL)
    scores = evaluation.evaluate(run, eval_examples=16)["scores"]
    assert scores["accuracy"] == again.best
    (read,) = read_results(tmp_path).runs
    assert read.label == "model-tuning"


def test_a_grid_s_folder_that_says_the_former_names_goes_on(
    tiny, done, tmp_path
):
    given = {
        "targets": "toy_review",
        "backbones": "random:bert-tiny",
        "settings": SMALL,
    }
    plan = expand(Grid(**given, methods="finetune"))
    (run,) = plan.runs
    shutil.copytree(done, tmp_path / run.folder, symlinks=True)
    as_of_0_1(tmp_path / run.folder)
    ledger = Ledger(plan, tmp_path)
    assert ledger.counts()["done"] == 1
    ledger.write_plan()
    path = tmp_path / "grid.json"
    listed = json.loads(path.read_text())
    assert listed["runs"][0]["kind"] == "finetune"
    for kind in ("finetune", "model"):
        listed["runs"][0]["kind"] = kind
        path.write_text(json.dumps(listed))
        (read,) = read_results(tmp_path).runs
        assert read.label == "model-tuning"
