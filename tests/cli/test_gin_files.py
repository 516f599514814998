"""Every gin file's training step, traced on shapes alone; what nobody reads."""

import dataclasses
import functools
import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest
from command_line import mistake
from panda_jax.tasks import specs
from test_package import GIN, whole

from panda_jax import cli, models
from panda_jax.config import runs
from panda_jax.config.runs import Run
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError
from panda_jax.experiments.grid.grid import expand
from panda_jax.step import fleet, steps
from panda_jax.step.fleet import Feed, Lanes
from panda_jax.store.backbones import Backbone
from panda_jax.training import prompt_init, step_inputs
from panda_jax.types import Batch

FILES = sorted(GIN.rglob("*.gin"))
# Where a file leaves the backbone open; those of T5 take no encoder.
OPEN = {"INITIAL_CHECKPOINT_PATH": "t5-small", "BACKBONE": "bert-tiny"}
ROWS, STEPS, TARGET = 24, 4, 16


def run_of(path) -> Run:
    """The run that a gin file describes, with the least that it asks for."""
    name, text = str(path.relative_to(GIN)), whole(path)
    argv = [f"--gin_file={name}"]
    for macro, backbone in OPEN.items():
        if f"{macro} = %gin.REQUIRED" in text:
            if name == "models/t5_folder.gin":
                backbone = "t5-small"
            argv.append(f"--gin.{macro}='random:{backbone}'")
    if "top_k" in text:
        argv.append("--sources=bank")
    if "TRAIN_STEPS" in text:
        argv.append("--gin.TRAIN_STEPS=300")
    if "grid." in text:
        args, _, _ = cli.resolve("grid", [*argv, "--out_dir=somewhere"])
        return next(r.run for r in expand(args).runs if r.kind == "panda")
    if "demo." in text:
        args, _, _ = cli.resolve("demo", [*argv, "--out_dir=somewhere"])
        values = {"task": args.target, "method": "panda"}
    else:
        args, _, _ = cli.resolve("train", [*argv, "--task=cb"])
        values = {}
    for field in dataclasses.fields(Run):
        if hasattr(args, field.name):
            values.setdefault(field.name, getattr(args, field.name))
    return runs.make_run(**values)


def trace(run: Run):
    """`fleet.run_steps` of the run under `jax.eval_shape`.

    Returns:
      The states before, and all that the function returns.
    """
    config = models.config(run.backbone.removeprefix("random:"))
    text = models.is_text_to_text(config)
    run = run.for_family(text_to_text=text)
    spec = specs.get(run.task)
    init = functools.partial(models.module(config).init, config=config)
    params = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    backbone = Backbone(
        run.backbone, config, params, TextTokenizer.of_bytes(), ""
    )
    step_spec = step_inputs.step_spec(run, backbone)

    def begin(params):
        prompt = prompt_init.initial_prompt(
            run, dataclasses.replace(backbone, params=params), None
        )
        trained = params if run.method == "finetune" else None
        state = steps.init_state(
            steps.Trainable(prompt, trained),
            clip=run.clip,
            optimizer=step_spec.optimizer,
        )
        return jax.tree.map(lambda x: x[None], (state, prompt))

    states, prompts = jax.eval_shape(begin, params)

    def array(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype)

    online = run.method == "panda" and (text or step_spec.teacher_dropout)
    labels = (ROWS, TARGET) if text else (ROWS,)
    tokens = array(ROWS, run.max_length)
    feed = Feed(
        Batch(tokens, tokens, array(*labels)),
        None
        if text or online
        else array(1, ROWS, spec.outputs, dtype=np.float32),
        array(STEPS, 1, run.batch_size),
        array(),
        array(),
    )
    number = array(1, dtype=np.float32)
    keys = jax.eval_shape(lambda: jax.random.key(0)[None])
    hyper = steps.Hyper(number, number, number, number, keys, number, number)
    found = jax.eval_shape(
        functools.partial(
            fleet.run_steps, spec=step_spec, lanes=Lanes(), most=STEPS
        ),
        states,
        array(),
        None if run.method == "finetune" else params,
        feed,
        prompts if online else None,
        hyper,
    )
    return states, found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_step_of_every_gin_file_compiles(path):
    run = run_of(path)
    before, (after, position, metrics) = trace(run)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.map(shape, after) == jax.tree.map(shape, before)
    assert position.shape == ()
    assert metrics["loss"].shape == (STEPS, 1)
    trained = jax.tree.leaves(after.trainable.backbone)
    assert bool(trained) == (run.method == "finetune")
    if run.prompt_length is not None:
        assert run.prompt_length in after.trainable.prompt.vectors.shape


def shape(leaf):
    return leaf.shape, str(leaf.dtype)


def test_a_run_whose_step_cannot_be_is_seen():
    """The trace is real: what does not fit together fails in it."""
    run = runs.make_run(task="cb", backbone="random:bert-tiny", max_length=600)
    with pytest.raises((TypeError, ValueError)):
        trace(run)


# Bindings that nobody reads.

GRID = ["grid", "--targets=cb", "--methods=prompt", "--out_dir=x"]
TRAIN = ["train", "--task=cb"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_every_binding_of_a_gin_file_is_read(path):
    run_of(path)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            [*GRID, "--gin.train.learning_rate=9"],
            [
                "--gin.train.learning_rate is read by train, plan, not by grid",
                "--settings='{\"learning_rate\": ...}'",
            ],
        ),
        (
            ["score", "--sources=a", "--out_dir=b", "--gin.train.seed=5"],
            ["read by train, plan, not by score. Did you mean score.seed?"],
        ),
        ([*GRID, "--gin.TRAIN_STEP=9"], ["no verb. Did you mean TRAIN_STEPS"]),
        ([*GRID, "--gin.TRAIN_STEPS=9"], ["is read by train, plan, not by"]),
        (
            [*GRID, "--gin.partitioning.PjitPartitioner.num_partitions=2"],
            ["is read by train, plan, not by grid"],
        ),
        ([*TRAIN, "--gin.TRAIN_STEP=9"], ["Did you mean TRAIN_STEPS?"]),
        ([*TRAIN, "--gin.train=1"], ["train is a verb, no setting: bind tra"]),
        ([*TRAIN, "--gin.epochs=1"], ["Did you mean train.epochs?"]),
        ([*TRAIN, "--gin.a/train.epochs=1"], ["Did you mean train.epochs?"]),
        ([*TRAIN, "--gin.grid.seeds=(1,)"], ["by grid, not by train"]),
        # A macro that only another verb's binding refers to.
        (
            [*TRAIN, "--gin_file=grid.gin", "--gin.SEEDS=(1, 2)"],
            ["SEEDS is read by grid, not by train"],
        ),
        (
            [*TRAIN, "--gin_file=scoped.gin", "--gin.LOST=1"],
            ["LOST is read by no verb"],
        ),
        # A plan reads a run's settings, and not where the run is written.
        (
            ["plan", "--topology=cpu:8", "--gin.train.model_dir='x'"],
            ["train.model_dir is read by train, not by plan"],
        ),
        # Several lines in one binding.
        ([*TRAIN, "--gin.train.seed=1\nLOST=2"], ["LOST is read by no verb"]),
    ],
)
def test_a_binding_that_nobody_reads(
    capsys, tmp_path, monkeypatch, argv, words
):
    (tmp_path / "grid.gin").write_text("SEEDS = (0,)\ngrid.seeds = %SEEDS\n")
    (tmp_path / "scoped.gin").write_text("other/train.seed = %LOST\n")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the files
        found = mistake(capsys, *argv)
    assert [part for part in words if part not in found] == []


READ = {
    "mine.gin": 'include "base.gin"\ntrain.seed = %SEED\n',
    "base.gin": "SEED = 3\nRATE = 0.5\ntrain.learning_rate = %RATE\n",
    "nested.gin": (
        "SEED = 4\nPARTS = (%SEED, 1)\n"
        "deep/readers_of_mine.first.values = %PARTS\n"
        "train.seed = @deep/readers_of_mine.first()\n"
    ),
}
MODULE = """
import gin


@gin.configurable(module="readers_of_mine")
def first(values):
    return values[0]


@gin.configurable(module="readers_of_mine")
def later(path):
    return path
"""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--gin_file=mine.gin"], {"seed": 3, "learning_rate": 0.5}),
        (["--gin_file=mine.gin", "--gin.SEED=5"], {"seed": 5}),
        # To be replaced is to have been read.
        (["--gin_file=mine.gin", "--seed=5"], {"seed": 5}),
        (["--gin_file=mine.gin", "--gin.train.seed=6"], {"seed": 6}),
        (["--gin.SEED=5", "--gin_file=mine.gin", "--seed=7"], {"seed": 7}),
        (["--gin.BATCH_SIZE=8", "--batch_size=4"], {"batch_size": 4}),
        (["--gin.train.seed=%X", "--gin.X=8"], {"seed": 8}),
        (["--gin.EVAL_STEPS=9"], {}),
        # Functions of one's own, in scopes, and those that are called later.
        (
            ["--gin_file=nested.gin", "--import=readers_of_mine"],
            {"seed": 4},
        ),
        (
            [
                "--import=readers_of_mine",
                "--gin.readers_of_mine.later.path=%WHERE",
                "--gin.WHERE='x'",
            ],
            {},
        ),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bindings_that_are_read(tmp_path, monkeypatch, argv, expected):
    for name, text in READ.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "readers_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    args, _, _ = cli.resolve("train", ["--task=cb", *argv])
    assert {name: getattr(args, name) for name in expected} == expected


def test_what_a_file_says_to_nobody_is_a_warning(tmp_path, capsys):
    """It may serve several verbs."""
    mine = tmp_path / "mine.gin"
    mine.write_text("train.seed = 3\ngrid.seeds = (1,)\nTRAIN_STEP = 9\n")
    with pytest.warns(RuntimeWarning) as said:
        args, _, _ = cli.resolve("train", ["--task=cb", f"--gin_file={mine}"])
    assert args.seed == 3
    (words,) = (str(warning.message) for warning in said)
    assert "grid.seeds is read by grid, not by train." in words
    assert "TRAIN_STEP is read by no verb. Did you mean TRAIN_STEPS?" in words
    # The same names typed are a mistake, whatever the file says.
    found = mistake(capsys, *TRAIN, f"--gin_file={mine}", "--gin.TRAIN_STEP=10")
    assert found.startswith("panda-jax: --gin.TRAIN_STEP is read by no verb")


def test_an_include_is_found_beside_the_file(tmp_path, monkeypatch):
    inner = tmp_path / "mine" / "parts"
    inner.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "top.gin").write_text("include 'parts/a.gin'\n")
    (inner / "a.gin").write_text("include 'b.gin'\n")
    (inner / "b.gin").write_text("train.seed = 7\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    argv = ["--task=cb", f"--gin_file={tmp_path / 'mine' / 'top.gin'}"]
    assert cli.resolve("train", argv)[0].seed == 7
    # No later file finds them from elsewhere.
    (tmp_path / "other.gin").write_text("include 'b.gin'\n")
    argv = ["--task=cb", f"--gin_file={tmp_path / 'other.gin'}"]
    with pytest.raises(UserError, match=r"b\.gin.*beside the one"):
        cli.resolve("train", argv)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("train.task = cb", "Strings need quotes"),
        ("include 'nowhere.gin'", "beside the one that includes"),
        ("import nowhere_at_all", "PYTHONPATH"),
        ("train.nothing = 1", "--help lists"),
    ],
)
def test_a_hint_is_of_what_is_wrong(tmp_path, text, hint):
    (tmp_path / "x.gin").write_text(text + "\n")
    argv = ["--task=cb", f"--gin_file={tmp_path / 'x.gin'}"]
    with pytest.raises(UserError) as told:
        cli.resolve("train", argv)
    assert hint in str(told.value)
    assert ("Strings" in str(told.value)) == ("Strings" in hint)
