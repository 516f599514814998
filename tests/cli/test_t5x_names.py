"""T5X's gin names: what each sets here, and runs of so many steps."""

import dataclasses
import json
import os
import re
import shlex
import signal
import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest
import small_t5
from command_line import mistake
from panda_jax.tasks import specs
from test_package import GIN, ROOT

import panda_jax as pj
from panda_jax import cli
from panda_jax.cli import t5x_names
from panda_jax.data import loading
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError
from panda_jax.io.writers import read_metrics
from panda_jax.models import t5
from panda_jax.store.backbones import Backbone
from panda_jax.training.lane import Lane

ASKED = ["--gin.MIXTURE_OR_TASK_NAME='cb'", "--gin.TRAIN_STEPS=300"]
CHECKPOINT = "--gin.INITIAL_CHECKPOINT_PATH='random:t5-small'"
FILE = "--gin_file=runs/t5x_prompt_tune.gin"
LENGTHS = "TASK_FEATURE_LENGTHS={'inputs': 99, 'targets': 9}"
RATE = "utils.create_learning_rate_scheduler.base_learning_rate=0.2"

# binding -> settings here
MEANINGS = {
    "MIXTURE_OR_TASK_NAME='rte'": {"task": "rte"},
    LENGTHS: {"max_length": 99, "target_length": 9},
    "TASK_FEATURE_LENGTHS={'inputs': 99}": {
        "max_length": 99,
        "target_length": None,
    },
    "TRAIN_STEPS=7": {"steps": 7, "epochs": None},
    "TRAIN_STEPS=1_000": {"steps": 1000},
    "EVAL_PERIOD=5": {"eval_period": 5, "eval_every": 1},
    "EVALUATOR_NUM_EXAMPLES=40": {"eval_examples": 40},
    "MODEL_DIR='there'": {"model_dir": "there"},
    "INITIAL_CHECKPOINT_PATH='random:t5-base'": {"backbone": "random:t5-base"},
    "BATCH_SIZE=4": {"batch_size": 4},
    "PROMPT_LENGTH=10": {"prompt_length": 10},
    "DROPOUT_RATE=0.25": {"dropout": 0.25},
    "RANDOM_SEED=3": {"seed": 3},
    "OPTIMIZER='adamw'": {"optimizer": "adamw"},
    "LEARNING_RATE=0.1": {"learning_rate": 0.1},
    RATE: {"learning_rate": 0.2, "schedule": "constant"},
    "NUM_PARTITIONS=2": {"num_partitions": 2},
    "partitioning.PjitPartitioner.num_partitions=2": {"num_partitions": 2},
    "PjitPartitioner.num_partitions=4": {"num_partitions": 4},
    "trainer.Trainer.num_microbatches=2": {"accumulate": 2},
    "USE_CACHED_TASKS=False": {},
    "EVAL_STEPS=20": {},
}


@pytest.mark.parametrize("binding", MEANINGS)
@pytest.mark.parametrize(
    "files", [[], [FILE, CHECKPOINT]], ids=["bare", "file"]
)
def test_what_a_name_sets(binding, files):
    """Also where no gin file refers to it: gin alone would say nothing."""
    plain, _, _ = cli.resolve("train", [*files, *ASKED])
    args, _, _ = cli.resolve("train", [*files, *ASKED, f"--gin.{binding}"])
    expected = dataclasses.asdict(plain) | MEANINGS[binding]
    assert dataclasses.asdict(args) == expected


def test_every_name_is_tried():
    said = {binding.partition("=")[0] for binding in MEANINGS}
    quiet = {name for name, value in t5x_names.BINDINGS.items() if not value}
    known = set(t5x_names.BINDINGS) - quiet - {"BACKBONE"}
    assert {
        name
        for name in known
        if not any(given.startswith(name) for given in said)
    } == set()


def test_a_file_s_defaults_are_t5x_s():
    args, _, _ = cli.resolve("train", [FILE, CHECKPOINT, *ASKED])
    found = dataclasses.asdict(args)
    for name, value in {
        "task": "cb",
        "backbone": "random:t5-small",
        "steps": 300,
        "batch_size": 128,
        "eval_period": 1000,
        "dropout": 0.1,
        "prompt_kind": "shallow",
        "prompt_length": 100,
        "optimizer": "adafactor",
        "learning_rate": 0.3,
        "schedule": "constant",
        "weight_decay": 1e-5,
        "num_partitions": None,
        "accumulate": 1,
    }.items():
        assert found[name] == value, name


def test_file_and_table_say_the_same():
    text = (GIN / "t5x.gin").read_text()
    bound = re.findall(r"^([a-z]\S+) = (.+)", text, re.MULTILINE)
    told = {
        k: v for part in t5x_names.BINDINGS.values() for k, v in part.items()
    }
    told["train.backbone"] = "%INITIAL_CHECKPOINT_PATH"
    assert len(bound) > 10
    assert {key: told[key] for key, _ in bound} == dict(bound)


def test_dry_run_shows_the_names_and_what_they_set(capsys):
    assert cli.main(["train", FILE, CHECKPOINT, *ASKED, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "TRAIN_STEPS = 300" in printed
    assert "train.steps = %TRAIN_STEPS" in printed
    assert "train.task = %MIXTURE_OR_TASK_NAME" in printed


def test_the_docs_command_resolves(capsys):
    page = ROOT.parent / "docs" / "t5x.md"
    if not page.is_file():
        pytest.skip("installed without the checkout")
    command = page.read_text().split("```\n")[1]
    argv = shlex.split(command.replace("\\\n", ""))
    assert cli.main([*argv[1:], "--dry_run"]) == 0
    assert "checkpoint_1100000'" in capsys.readouterr().out


def test_a_gin_file_may_bring_a_task(tmp_path, monkeypatch):
    (tmp_path / "brings_a_task.py").write_text(
        "import dataclasses\n"
        "from panda_jax.tasks import specs\n"
        "spec = specs.get('toy_review')\n"
        "specs.register(dataclasses.replace(spec, name='brought_task'))\n"
    )
    mine = tmp_path / "mine.gin"
    mine.write_text(
        'import brings_a_task\nMIXTURE_OR_TASK_NAME = "brought_task"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(specs, "_SPECS", dict(specs._SPECS))
    args, _, _ = cli.resolve("train", [f"--gin_file={mine}"])
    assert specs.of_registry(args.task) == ("brought_task", False)
    assert specs.of_registry("brought_task_text") == ("brought_task", True)


def test_later_wins(tmp_path):
    mine = tmp_path / "mine.gin"
    mine.write_text("TRAIN_STEPS = 12\nBATCH_SIZE = 4\n")
    ours = tmp_path / "ours.gin"
    ours.write_text("train.batch_size = 2\n")
    base = ["--task=cb", f"--gin_file={mine}"]

    def batch(*argv):
        args, _, _ = cli.resolve("train", [*base, *argv])
        assert args.steps == 12
        return args.batch_size

    assert batch() == 4
    assert batch(f"--gin_file={ours}") == 2
    assert batch(f"--gin_file={ours}", "--gin.BATCH_SIZE=8") == 8
    assert batch("--gin.BATCH_SIZE=8", "--batch_size=16") == 16
    args, _, _ = cli.resolve(
        "train", [FILE, f"--gin_file={ours}", CHECKPOINT, *ASKED]
    )
    assert args.batch_size == 2
    model = "--gin_file=methods/model.gin"
    args, _, _ = cli.resolve("train", [model, *ASKED])
    assert (args.steps, args.epochs) == (300, None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gin.TRAIN_STEP=3"], ["read by no verb", "mean TRAIN_STEPS?"]),
        (["--gin.CLASS_LABELS=['a', 'b']"], ["CLASS_LABELS is read by no v"]),
        (
            ["--gin.TASK_FEATURE_LENGTHS={'targets': 3}"],
            ["TASK_FEATURE_LENGTHS is {'targets': 3}", "inputs"],
        ),
        (
            ["--gin.PjitPartitioner.model_parallel_submesh=(1, 1, 2, 1)"],
            ["model_parallel_submesh", "num_partitions"],
        ),
        (
            ["--gin.utils.create_learning_rate_scheduler.factors='rsqrt'"],
            ["factors are 'rsqrt'", "train.schedule"],
        ),
        (["--gin.RANDOM_SEED=None"], ["seed is None", "int"]),
        (["--gin.TRAIN_STEPS=0"], ["steps is 0", "1 or more"]),
        (["--gin.TRAIN_STEPS=9", "--epochs=2"], ["--steps=None", "--epochs"]),
        (["--gin.EVAL_PERIOD=9", "--eval_every=2"], ["eval_every is 2"]),
    ],
)
def test_mistakes(capsys, argv, words):
    found = mistake(capsys, "train", "--task=cb", *argv, "--dry_run")
    assert [word for word in words if word not in found] == []


def test_a_file_s_missing_name_is_asked_for(capsys):
    found = mistake(capsys, "train", FILE, CHECKPOINT, ASKED[0], "--dry_run")
    assert "steps is not set" in found
    assert "--gin.NAME=VALUE" in found


def test_steps_on_top_of_a_checkpoint_s_own_are_questioned():
    path = "gs://there/t5_1_1_lm100k_base/checkpoint_1100000"
    with pytest.warns(RuntimeWarning, match=r"1100000.*give 50000"):
        t5x_names.warn_of_pretraining(path, 1_150_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        t5x_names.warn_of_pretraining(path, 50_000)
        t5x_names.warn_of_pretraining("random:t5-small", 1_150_000)


# Steps in place of epochs

SMALL = [
    "--backbone=random:bert-tiny",
    "--gin.MIXTURE_OR_TASK_NAME='toy_sentiment'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}",
    "--gin.BATCH_SIZE=8",
    "--gin.PROMPT_LENGTH=4",
    "--train_examples=40",
    "--eval_examples=16",
]


def run(folder, *argv):
    status = cli.main(["train", *SMALL, f"--gin.MODEL_DIR='{folder}'", *argv])
    return status


def metrics(folder):
    lines = list(read_metrics(folder / "metrics.jsonl"))
    losses = {x["step"]: x["loss"] for x in lines if "loss" in x}
    return losses, [x["step"] for x in lines if "eval_accuracy" in x]


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """7 steps of 5 an epoch, evaluated every 3."""
    folder = tmp_path_factory.mktemp("seven") / "run"
    assert run(folder, "--gin.TRAIN_STEPS=7", "--gin.EVAL_PERIOD=3") == 0
    return folder


def test_a_run_ends_after_exactly_so_many_steps(seven):
    result = json.loads((seven / "result.json").read_text())
    assert (result["steps"], result["epochs"]) == (7, 2)
    losses, evaluated = metrics(seven)
    assert max(losses) == 7
    # The first epoch's end is evaluated whatever the period.
    assert evaluated == [3, 5, 6, 7]
    assert result["final"]["value"] is not None


@pytest.mark.parametrize("asked", [3, 5])
def test_it_goes_on_from_where_it_was_ended(
    seven, tmp_path, asked, monkeypatch, capsys
):
    """Asked at an evaluation, a run ends after the next one, and keeps it."""
    folder = tmp_path / "run"
    scored = Lane.scored

    def asking(self, step, found, **options):
        if step == asked:
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(self, step, found, **options)

    options = ["--gin.TRAIN_STEPS=7", "--gin.EVAL_PERIOD=3"]
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "scored", asking)
        assert run(folder, *options) == 143
    assert not (folder / "result.json").exists()
    assert run(folder, *options) == 0
    assert "resumed at step" in capsys.readouterr().err
    assert metrics(folder)[1] == [3, 5, 6, 7]
    assert metrics(folder)[0][7] == metrics(seven)[0][7]
    one, other = (
        (path / "prompt" / "adapter_model.safetensors").read_bytes()
        for path in (folder, seven)
    )
    assert one == other


def test_stops_between_do_not_change_the_steps(tiny, tmp_path):
    """2 epochs, 10 steps, and 10 steps looked at every 3 are one run."""
    options = {
        "train_examples": 40,
        "eval_examples": 16,
        "batch_size": 8,
        "prompt_length": 4,
        "max_length": 32,
        "quiet": True,
    }
    found = []
    for name, steps in (
        ("epochs", {"epochs": 2}),
        ("steps", {"steps": 10}),
        ("period", {"steps": 10, "eval_period": 3}),
    ):
        folder = tmp_path / name
        pj.train(
            tiny, task="toy_sentiment", model_dir=folder, **options, **steps
        )
        found.append(metrics(folder))
    (losses, evaluated), second, third = found
    assert second == (losses, evaluated)
    assert losses == third[0]
    assert evaluated == [5, 10]
    assert third[1] == [3, 5, 6, 9, 10]


def test_fewer_steps_than_an_epoch(tiny, monkeypatch):
    """The end is then the first epoch's; rows off the device likewise."""
    monkeypatch.setattr("panda_jax.training.step_inputs.MOST_RESIDENT", 0)
    done = pj.train(
        tiny,
        task="toy_sentiment",
        train_examples=40,
        eval_examples=16,
        batch_size=8,
        prompt_length=4,
        max_length=32,
        steps=3,
        eval_period=2,
        quiet=True,
    )
    assert done.result["steps"] == 3
    assert done.result["first_epoch"] == done.result["final"]


# Names of the registry


@pytest.fixture(scope="module")
def bytes_t5():
    config = dataclasses.replace(small_t5.CONFIG, vocab_size=384)
    init = jax.jit(t5.init, static_argnums=1)
    params = nn.meta.unbox(init(jax.random.key(0), config))
    return Backbone(
        "random:bytes", config, params, TextTokenizer.of_bytes(), ""
    )


def test_the_text_entry_of_a_task_is_the_task_on_a_t5(bytes_t5, monkeypatch):
    seen = []
    load = loading.load_text_examples

    def noted(task, split, **options):
        seen.append((task, split, options["target_length"]))
        return load(task, split, **options)

    monkeypatch.setattr(
        "panda_jax.training.evaluation.load_text_examples", noted
    )
    done = pj.train(
        bytes_t5,
        task="toy_review_text",
        train_examples=8,
        eval_examples=4,
        batch_size=4,
        prompt_length=4,
        max_length=24,
        target_length=3,
        steps=1,
        quiet=True,
    )
    assert done.result["task"] == "toy_review"
    # What is learnt is cut, answers are read whole.
    assert seen == [
        ("toy_review", "train", 3),
        ("toy_review", "validation", None),
    ]
    rows = load(
        "toy_review",
        "train",
        tokenizer=bytes_t5.tokenizer,
        input_length=24,
        target_length=3,
        limit=4,
    )
    assert np.shape(rows.targets)[1] == 3


def test_an_encoder_reads_no_text_entry_and_no_run_a_mixture(tiny):
    with pytest.raises(UserError, match="--task=toy_review, or a T5"):
        pj.train(tiny, task="toy_review_text")
    with pytest.raises(UserError, match="mixture of 8 tasks"):
        pj.train(tiny, task="super_glue_text")
    with pytest.raises(UserError, match="Did you mean 'toy_review'"):
        pj.train(tiny, task="toy_reviw_text")
