"""A run is what it uses; its result, its prompt and itself stay together."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from command_line import mistake

import panda_jax as pj
from panda_jax import cli
from panda_jax.config import runs, settings
from panda_jax.config.runs import Run
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UnusedSetting
from panda_jax.experiments.grid import runner
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.experiments.grid.ledger import Ledger
from panda_jax.experiments.report.results import read_results
from panda_jax.interop import hf
from panda_jax.io import ownership
from panda_jax.store import prompt_folders
from panda_jax.training import identity

SMALL = {
    "steps": 4,
    "train_examples": 16,
    "eval_examples": 16,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
    "quiet": True,
}
TASK = {"task": "toy_sentiment"}


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("done") / "run"
    pj.train(tiny, model_dir=folder, **TASK, **SMALL)
    return folder


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> pathlib.Path:
    """The folder of another finished run."""
    folder = tmp_path_factory.mktemp("other") / "run"
    pj.train(tiny, model_dir=folder, seed=1, **TASK, **SMALL)
    return folder


@pytest.fixture
def copied(done, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(done, tmp_path / "run"))


def rewrite(path: pathlib.Path, **changes) -> None:
    value = json.loads(path.read_text())
    for name, change in changes.items():
        if change is None:
            value.pop(name, None)
        else:
            value[name] = change
    path.write_text(json.dumps(value))


def as_of_0_1(folder: pathlib.Path) -> None:
    """Takes out what 0.1 did not write."""
    about = json.loads((folder / "run.json").read_text())
    fingerprints = about["fingerprints"]
    del fingerprints["tokenizer"]
    rewrite(folder / "run.json", hash=None, fingerprints=fingerprints)
    rewrite(folder / "result.json", run_hash=None, prompt_hash=None)
    rewrite(
        folder / "prompt" / "panda.json",
        tokenizer_fingerprint=None,
        backbone_folder=None,
    )
    for place in (folder, folder / "prompt"):
        (place / ownership.LISTING).unlink(missing_ok=True)


def again(tiny, folder, **changes):
    return pj.train(tiny, model_dir=folder, **TASK, **{**SMALL, **changes})


# A result is that of the run beside it.


@pytest.mark.parametrize("old", [False, True], ids=["now", "0.1"])
def test_a_result_without_its_run_is_nobody_s(tiny, copied, old):
    if old:
        as_of_0_1(copied)
    (copied / "run.json").unlink()
    with pytest.raises(pj.UserError, match=r"result\.json and no run\.json"):
        again(tiny, copied)
    with pytest.raises(pj.UserError, match=r"result\.json and no run\.json"):
        again(tiny, copied, seed=7)


@pytest.mark.parametrize("old", [False, True], ids=["now", "0.1"])
def test_another_run_s_result_is_not_handed_back(tiny, copied, other, old):
    shutil.copy(other / "result.json", copied / "result.json")
    if old:
        as_of_0_1(copied)
    with pytest.raises(pj.UserError, match="is of run toy_sentiment-prompt-s1"):
        again(tiny, copied)


@pytest.mark.parametrize("old", [False, True], ids=["now", "0.1"])
def test_another_prompt_is_not_handed_back(tiny, copied, other, old):
    shutil.rmtree(copied / "prompt")
    shutil.copytree(other / "prompt", copied / "prompt")
    if old:
        as_of_0_1(copied)
    with pytest.raises(pj.UserError, match="is not the one that its result"):
        again(tiny, copied)


def test_a_description_that_was_changed_is_refused(tiny, copied):
    about = json.loads((copied / "run.json").read_text())
    about["settings"]["kd_beta"] = 0.3
    rewrite(copied / "run.json", settings=about["settings"])
    with pytest.raises(pj.UserError, match="was changed after it was written"):
        again(tiny, copied)


def test_a_folder_of_0_1_is_gone_on_with(tiny, copied):
    as_of_0_1(copied)
    before = (copied / "result.json").read_bytes()
    found = again(tiny, copied)
    assert (copied / "result.json").read_bytes() == before
    assert found.result == json.loads(before)


def test_an_unfinished_folder_of_0_1_keeps_its_name(tiny, copied):
    """Its checkpoint knows the run by that."""
    as_of_0_1(copied)
    rewrite(copied / "run.json", run_id="toy_sentiment-prompt-s0-old")
    before = (copied / "run.json").read_bytes()
    (copied / "result.json").unlink()
    shutil.rmtree(copied / "checkpoints")
    found = again(tiny, copied)
    assert (copied / "run.json").read_bytes() == before
    assert found.result["run_id"] == "toy_sentiment-prompt-s0-old"
    assert again(tiny, copied).result == found.result


def test_a_report_leaves_out_what_is_not_bound(done, other, tmp_path):
    for name in ("right", "result", "prompt", "alone"):
        shutil.copytree(done, tmp_path / name)
    shutil.copy(other / "result.json", tmp_path / "result" / "result.json")
    shutil.rmtree(tmp_path / "prompt" / "prompt")
    shutil.copytree(other / "prompt", tmp_path / "prompt" / "prompt")
    (tmp_path / "alone" / "run.json").unlink()
    found = read_results(tmp_path)
    reasons = {out.folder: out.reason for out in found.left_out}
    assert "is of run toy_sentiment-prompt-s1" in reasons["result"]
    assert "is not the one that its result" in reasons["prompt"]
    # Of what is left, one is the same run twice.
    assert [run.folder for run in found.runs] == ["alone"]
    assert reasons["right"].startswith("the same run")


# What is not used makes no other run.


def test_a_default_that_is_written_out_is_the_same_run(tiny, done):
    before = (done / "result.json").read_bytes()
    again(tiny, done, learning_rate=1e-2, prompt_kind="deep", clip=1.0)
    assert (done / "result.json").read_bytes() == before


def test_settings_that_a_run_does_not_use_do_not_tell_it_apart(done):
    about = json.loads((done / "run.json").read_text())
    given = {**about["settings"], "kd_beta": 0.2, "temperature": 4.0}
    assert identity.same_run(done, {**about, "settings": given}) == about
    given["clip"] = 0.5
    with pytest.raises(pj.UserError, match="clip: 1.0 there, 0.5 now"):
        identity.same_run(done, {**about, "settings": given})


def test_an_id_is_of_what_is_used():
    def id_of(needs=None, fingerprints=None, **changes):
        run = runs.make_run(**{"task": "cb", **changes})
        return identity.run_id(run, needs or {}, fingerprints)

    plain = id_of()
    assert plain == id_of(kd_lambda=5.0) == id_of(learning_rate=1e-2)
    assert plain != id_of(clip=2.0)
    panda = id_of(method="panda")
    assert panda == id_of(method="panda", temperature=5.0)
    assert panda != id_of(method="panda", kd_lambda=5.0)
    assert id_of(method="panda", recipe="kl") != id_of(
        method="panda", recipe="kl", temperature=5.0
    )
    control = id_of(method="panda", kd_weight=0.0)
    assert control == id_of(
        {"source": "mrpc@1"}, method="panda", kd_weight=0.0, kd_lambda=5.0
    )
    weights = {"backbone weights": "1", "dtype": "float32"}
    one = id_of(fingerprints=weights, backbone="here/bert")
    assert one == id_of(fingerprints=weights, backbone="there/bert")
    assert one == id_of(fingerprints=weights, dtype="float32")
    assert one != id_of(fingerprints={**weights, "backbone weights": "2"})


COMBINATIONS = [
    ("prompt", "paper", {}),
    ("pot", "paper", {}),
    ("panda", "paper", {}),
    ("panda", "released", {}),
    ("panda", "kl", {}),
    ("panda", "paper", {"kd_weight": 0.5}),
    ("finetune", "paper", {}),
]
CHANGED = {
    "prompt_kind": "deep", "prompt_length": 3, "prompt_init": "vocabulary",
    "init_stddev": 0.5, "resize_source": True, "dtype": "float32",
    "kd_lambda": 0.5, "kd_beta": 0.5, "kd_weight": 0.25,
    "kd_transform": "shift", "transfer_metric": "e_avg", "top_k": 1,
    "fusion": "late", "temperature": 5.0, "recipe": "released",
}  # fmt: skip


def test_every_setting_is_used_by_some_run():
    used = set()
    for method, recipe, more in COMBINATIONS:
        for several in (False, True):
            values = {"method": method, "recipe": recipe, **more}
            whole = {**runs.DEFAULTS, **values}
            used |= {
                name
                for name in runs.DEFAULTS
                if not settings.why_unused(name, whole, several=several)
            }
    assert used == set(runs.DEFAULTS)
    assert set(settings.USES) - set(CHANGED) == {"init_text"}


@pytest.mark.parametrize(("method", "recipe", "more"), COMBINATIONS, ids=str)
def test_the_table_of_settings_is_true(
    tiny, done, method, recipe, more, monkeypatch
):
    """What is said to be unused changes no bit of a run."""
    plain = {"method": method, "recipe": recipe, **more}
    whole = {**runs.DEFAULTS, **plain}
    idle = {
        name: value
        for name, value in CHANGED.items()
        if settings.why_unused(name, whole, several=False)
    }
    assert idle, "a run that uses everything"
    for name, value in idle.items():
        run = runs.make_run(task="cb", **{**plain, name: value})
        with pytest.warns(UnusedSetting, match=f"{name} is .*Leave out"):
            kept = runs.left_out(run, several=False)
        assert kept == runs.make_run(task="cb", **plain)
    monkeypatch.setattr(runs, "left_out", lambda run, several: run)
    source = done if method in ("pot", "panda") else None
    common = {**SMALL, "task": "toy_review", "source": source}
    common["prompt_length"] = None if method == "finetune" else 4
    one, two = (
        pj.train(tiny, **{**common, **plain, **changes})
        for changes in ({}, idle)
    )
    assert one.result["prompt_hash"] == two.result["prompt_hash"]
    assert one.result["final"] == two.result["final"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--kd_beta=0.2"], "kd_beta is 0.2, but method 'prompt' makes no use"),
        (["--recipe=released"], "recipe is 'released'.*panda does"),
        (
            ["--method=panda", "--source=S", "--kd_beta=0.2"],
            "recipe 'paper' makes no use.*panda, recipe released",
        ),
        (
            ["--method=panda", "--source=S", "--kd_weight=1", "--kd_lambda=3"],
            "kd_weight sets the distillation's weight itself",
        ),
        (["--method=pot", "--source=S", "--top_k=3"], "one source leaves"),
        (
            ["--method=panda", "--source=S", "--kd_weight=1", "--similarity=1"],
            "A similarity serves to weigh .*kd_weight=1.0 sets",
        ),
        (
            ["--method=panda", "--source=S", "--target_prompt=S"]
            + ["--recipe=released"],
            "A target_prompt serves .*recipe 'released' takes",
        ),
    ],
    ids=range(7),
)
def test_flags_without_a_use_are_refused(done, tmp_path, capsys, flags, words):
    flags = [flag.replace("=S", f"={done}") for flag in flags]
    said = mistake(
        capsys,
        "train",
        "--task=toy_review"
        if "target" not in str(flags)
        else "--task=toy_sentiment",
        "--backbone=random:bert-tiny",
        "--steps=2",
        f"--model_dir={tmp_path / 'run'}",
        *flags,
    )
    assert re.search(words, said), said
    assert not (tmp_path / "run").exists()


def test_a_gin_file_may_say_more_than_a_method_uses(
    tmp_path, monkeypatch, capsys
):
    """It may serve several methods; what is left out is said."""
    path = tmp_path / "all.gin"
    path.write_text("train.kd_lambda = 3.0\ntrain.resize_source = True\n")
    asked = [
        "train",
        "--task=toy_sentiment",
        "--backbone=random:bert-tiny",
        "--steps=2",
        "--train_examples=16",
        "--eval_examples=16",
        "--max_length=32",
        f"--gin_file={path}",
    ]
    with pytest.warns(RuntimeWarning) as said:
        assert cli.main([*asked, f"--model_dir={tmp_path / 'run'}"]) == 0
    text = "\n".join(str(one.message) for one in said)
    assert "A gin file sets kd_lambda to 3.0: method 'prompt' makes no" in text
    assert "A gin file sets resize_source to True" in text
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"]["kd_lambda"] == runs.DEFAULTS["kd_lambda"]
    for bound in ("--kd_lambda=3.0", "--gin.train.kd_lambda=3.0"):
        assert "kd_lambda is 3.0, but" in mistake(capsys, *asked, bound)


def test_help_says_who_listens(capsys):
    assert cli.main(["help", "train"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Only with method panda and recipe released." in said


# A setting that a later release adds.


@pytest.fixture
def later(tmp_path) -> pathlib.Path:
    """The package as it would be with one more setting."""
    package = pathlib.Path(pj.__file__).parent
    root = tmp_path / "later"
    shutil.copytree(package, root / "panda_jax")
    for name in ("tasks", "gin"):
        inside = package / name
        place = inside if inside.is_dir() else package.parent / name
        if not (root / "panda_jax" / name).exists():
            shutil.copytree(place, root / name)
    path = root / "panda_jax" / "config" / "runs.py"
    text = path.read_text()
    before = "    dtype: Annotated["
    assert text.count(before) == 1
    added = f"    novelty: float = 0.25\n{before}"
    path.write_text(text.replace(before, added))
    return root


LATER = """
import json, sys
import panda_jax as pj
from panda_jax.config import runs
from panda_jax.experiments.grid.grid import expand
from panda_jax.experiments.grid.grid import Grid
assert runs.DEFAULTS["novelty"] == 0.25
run, grid, more = json.loads(sys.argv[1])
print(json.dumps([(r.id, r.folder) for r in expand(Grid(**grid)).runs]))
grid["settings"]["novelty"] = 0.5
print(json.dumps([(r.id, r.folder) for r in expand(Grid(**grid)).runs]))
result = pj.train("random:bert-tiny", **run)
print(json.dumps(result.result))
try:
    pj.train("random:bert-tiny", **run, novelty=0.5)
except pj.UserError as error:
    print(json.dumps(str(error)))
"""


def test_a_setting_that_a_later_release_adds_changes_nothing(
    later, copied, tmp_path
):
    grid = {
        "sources": "toy_sentiment",
        "targets": "toy_review",
        "backbones": "random:bert-tiny",
        "settings": {"epochs": 2},
    }
    before = {
        path: path.read_bytes()
        for path in (copied / "run.json", copied / "result.json")
    }
    given = [{**TASK, **SMALL, "model_dir": str(copied)}, grid, {}]
    done = subprocess.run(
        [sys.executable, "-c", LATER, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": str(later)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ids, others, result, error = map(json.loads, done.stdout.splitlines())
    assert ids == [[r.id, r.folder] for r in expand(Grid(**grid)).runs]
    assert not {id_ for id_, _ in ids} & {id_ for id_, _ in others}
    assert {path: path.read_bytes() for path in before} == before
    assert result == json.loads(before[copied / "result.json"])
    assert "novelty: 0.25 there, 0.5 now" in error


# Spellings.


@pytest.fixture(scope="module")
def folder_backbone(tiny, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("backbones") / "my_bert"
    hf.save(folder, tiny.params, tiny.config)
    tiny.tokenizer.save(folder)
    return folder


def test_a_backbone_is_its_weights_however_it_is_written(
    folder_backbone, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder_backbone.parent)
    first = pj.train("my_bert", model_dir=tmp_path / "run", **TASK, **SMALL)
    for name in ("./my_bert", "my_bert/", str(folder_backbone)):
        found = pj.train(name, model_dir=tmp_path / "run", **TASK, **SMALL)
        assert found.result == first.result
    assert first.result["backbone"] == "my_bert"
    dotted = pj.train("./my_bert/", **TASK, **SMALL)
    assert dotted.result["backbone"] == "my_bert"
    assert dotted.result["run_id"] == first.result["run_id"]


def test_a_prompt_finds_its_backbone_from_everywhere(
    folder_backbone, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(folder_backbone.parent)
    run = tmp_path / "run"
    pj.train("my_bert", model_dir=run, **TASK, **SMALL)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"sentence": "the film was good"}\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    asked = ["predict", f"--prompt={run}", f"--input={rows}", "--out_dir=o"]
    assert cli.main(asked) == 0
    assert (elsewhere / "o" / "predictions.jsonl").is_file()
    assert pj.evaluate(run, eval_examples=8)
    # Nothing of where it lay leaves with an export.
    assert cli.main(["export", "peft", str(run), "--out_dir=shared"]) == 0
    for path in (elsewhere / "shared").iterdir():
        assert str(folder_backbone).encode() not in path.read_bytes()
    # And where it is gone, the message says where it was looked for.
    about = prompt_folders.load_prompt(run)
    moved = dataclasses.replace(
        about.info, backbone_folder=str(tmp_path / "gone")
    )
    prompt_folders.save_prompt(tmp_path / "moved", about.prompt, moved)
    capsys.readouterr()
    said = mistake(capsys, "evaluate", f"--prompt={tmp_path / 'moved'}")
    assert "gone' does not exist" in said
    assert "--backbone=DIR" in said


def test_a_grid_knows_a_backbone_by_where_it_lies(
    folder_backbone, tmp_path, monkeypatch
):
    def grid(backbone):
        return Grid(
            sources="toy_sentiment",
            backbones=backbone,
            overrides={f"{backbone} source": {"epochs": 3}},
        )

    monkeypatch.chdir(folder_backbone.parent)
    plan = expand(grid("./my_bert"))
    Ledger(plan, tmp_path).write_plan()
    for name in ("my_bert", "./my_bert/", str(folder_backbone)):
        found = expand(runner._as_spelled(grid(name), tmp_path))
        assert [run.id for run in found.runs] == [run.id for run in plan.runs]
    other = expand(runner._as_spelled(grid("random:bert-tiny"), tmp_path))
    assert {r.id for r in other.runs} & {r.id for r in plan.runs} == set()


def test_a_result_of_another_run_is_not_a_grid_s(tiny, done, tmp_path):
    settings = {name: x for name, x in SMALL.items() if name != "quiet"}
    for seed, wrong in ((0, None), (1, "seed: 0 there, 1 asked for")):
        grid = Grid(
            sources="toy_sentiment",
            backbones="random:bert-tiny",
            seeds=(seed,),
            settings=settings,
        )
        (run,) = expand(grid).runs
        out = tmp_path / str(seed)
        shutil.copytree(done, out / run.folder)
        if wrong is None:
            assert Ledger(expand(grid), out).counts()["done"] == 1
            continue
        with pytest.raises(pj.UserError, match=wrong):
            Ledger(expand(grid), out)
        (out / run.folder / "run.json").unlink()
        with pytest.raises(pj.UserError, match=wrong):
            Ledger(expand(grid), out)


# Tokenizers.


def test_a_prompt_is_bound_to_its_tokenizer(
    tiny, folder_backbone, tmp_path, capsys
):
    model = pathlib.Path(shutil.copytree(folder_backbone, tmp_path / "model"))
    run = tmp_path / "run"
    pj.train(str(model), model_dir=run, **TASK, **SMALL)
    path = model / "tokenizer.json"
    value = json.loads(path.read_text())
    value["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(value))
    said = mistake(capsys, "evaluate", f"--prompt={run}")
    assert "was trained under another tokenizer" in said
    with pytest.raises(pj.UserError, match="tokenizer: '.*' there, '.*' now"):
        pj.train(str(model), model_dir=run, **TASK, **SMALL)
    bank = {"a": prompt_folders.load_prompt(run)}
    with pytest.raises(pj.UserError, match="under another tokenizer"):
        pj.score(sources=bank, targets=bank, metrics=("panda",))


def test_a_tokenizer_written_in_other_words_is_the_same(tmp_path):
    """As a newer release of the library might."""
    tokenizer = Tokenizer.builtin()
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"] = value["added_tokens"][::-1]
    path.write_text(json.dumps(value, sort_keys=True))
    read = Tokenizer.from_folder(tmp_path)
    assert read.identity == tokenizer.identity
    for rule in (
        "strip_accents",
        "handle_chinese_chars",
        "clean_text",
        "lowercase",
    ):
        altered = {**value, "normalizer": {**value["normalizer"], rule: False}}
        path.write_text(json.dumps(altered))
        assert Tokenizer.from_folder(tmp_path).identity != read.identity


def test_the_fields_of_a_run_are_those_of_its_defaults():
    assert set(runs.DEFAULTS) == {f.name for f in dataclasses.fields(Run)}
