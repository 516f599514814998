"""Every gin file's training step, traced on shapes alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from panda_jax.tasks import specs
from test_package import GIN, whole

from panda_jax import assembly, cli, fleet, models, runs, starts, steps
from panda_jax.backbone import Backbone
from panda_jax.experiments.expansion import expand
from panda_jax.fleet import Feed, Lanes
from panda_jax.runs import Run
from panda_jax.text_tokenizer import TextTokenizer
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
    step_spec = assembly.step_spec(run, backbone)

    def begin(params):
        prompt = starts.initial_prompt(
            run, dataclasses.replace(backbone, params=params), None
        )
        trained = params if run.method == "model" else None
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
        None if run.method == "model" else params,
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
    assert bool(trained) == (run.method == "model")
    if run.prompt_length is not None:
        assert run.prompt_length in after.trainable.prompt.vectors.shape


def shape(leaf):
    return leaf.shape, str(leaf.dtype)


def test_a_run_whose_step_cannot_be_is_seen():
    """The trace is real: what does not fit together fails in it."""
    run = runs.make_run(task="cb", backbone="random:bert-tiny", max_length=600)
    with pytest.raises((TypeError, ValueError)):
        trace(run)
