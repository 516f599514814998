"""Plans: a run's own program, FLOPs by hand, the compiler's word."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from panda_jax import cli, models
from panda_jax.config import runs
from panda_jax.errors import UserError
from panda_jax.parallel.sharding import Partitioner
from panda_jax.planning import chips, hlo, plan
from panda_jax.planning.abstract import Elsewhere, Outline
from panda_jax.training import evaluation
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import Assembly

TASK = "toy_review"


def elsewhere(*shape, **settings):
    return Elsewhere(mesh_shape=shape, devices=tuple(jax.devices()), **settings)


def a_run(**changes):
    settings = {
        "task": TASK,
        "backbone": "random:bert-tiny",
        "prompt_length": 4,
        "max_length": 16,
        "batch_size": 8,
        "train_examples": 40,
        **changes,
    }
    return runs.make_run(**settings)


# The plan's arguments are a run's


def taught_lanes(run, backbone, count):
    """As `training` makes them, with a made-up teacher."""
    run = run.for_family(text_to_text=backbone.text_to_text)
    lanes = [Lane(run, f"lane {i}", Needs()) for i in range(count)]
    if not (run.method == "panda" and run.needs_source):
        return lanes
    from panda_jax.store.prompt_folders import StoredPrompt
    from panda_jax.training.prompt_init import initial_prompt

    teacher = StoredPrompt(initial_prompt(run, backbone, None), None)
    needs = Needs(None, teacher, 0.5, 0.5)
    return [dataclasses.replace(lane, needs=needs) for lane in lanes]


@pytest.mark.parametrize(
    ("mesh", "count", "dims", "changes"),
    [
        ((4, 1, 2), 6, 1, {"method": "prompt"}),
        ((4, 1, 2), 6, 1, {"method": "panda", "prompt_kind": "shallow"}),
        ((2, 2, 2), 3, 2, {"method": "panda", "recipe": "released"}),
        ((1, 4, 2), 1, 1, {"method": "model"}),
        ((2, 1, 4), 2, 1, {"method": "panda", "batch_size": 6, "remat": True}),
        ((8, 1, 1), 8, 1, {"method": "panda", "backbone": "t5"}),
    ],
)
def test_a_plan_is_given_what_a_run_is_given(
    tiny, small_t5, mesh, count, dims, changes
):
    text = changes.pop("backbone", "") == "t5"
    backbone = small_t5 if text else tiny
    run = a_run(backbone=backbone.id, **changes)
    if text:
        run = dataclasses.replace(run, target_length=8)
    data = evaluation.load_view(
        TASK,
        "train",
        backbone=backbone,
        max_length=run.max_length,
        limit=run.train_examples,
        **({"target_length": 8} if text else {}),
    )
    partitioner = elsewhere(*mesh, parameter_partitioning_dims=dims, chunk=1)
    parts = Assembly(
        backbone,
        taught_lanes(run, backbone, count),
        data,
        partitioner=Partitioner(
            mesh_shape=mesh, parameter_partitioning_dims=dims, chunk=1
        ),
    )
    states = parts.start()
    teachers = parts.load()
    feed = next(parts.feeds(0))
    real = (states, parts.frozen(), feed, teachers, parts.hypers())

    outline = Outline(
        run,
        backbone.config,
        dtype="float32",
        count=count,
        partitioner=partitioner,
    )
    planned = (
        outline.states,
        outline.frozen,
        outline.feed,
        outline.teachers,
        outline.hypers,
    )
    if text:  # targets are as long as the longest, which nobody has read
        labels = planned[2].data.labels
        size = real[2].data.labels.shape
        assert labels.shape[0] == size[0]
        assert labels.shape[1] >= size[1]
        data = planned[2].data._replace(
            labels=jax.ShapeDtypeStruct(
                size, labels.dtype, sharding=labels.sharding
            )
        )
        planned = (*planned[:2], planned[2]._replace(data=data), *planned[3:])
    assert jax.tree.structure(real) == jax.tree.structure(planned)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(real),
        jax.tree.leaves(planned),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        assert a.shape == b.shape, name
        assert a.dtype == b.dtype, name
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), name
    assert outline.parts.step_spec == dataclasses.replace(
        parts.step_spec, layout=None
    )
    assert outline.parts.layout == parts.layout
    for axes, lane, whole in zip(
        outline.axes, parts.step_spec.layout, parts.state_layout, strict=True
    ):
        assert lane == NamedSharding(parts.mesh, PartitionSpec(*axes))
        assert whole == NamedSharding(parts.mesh, PartitionSpec("data", *axes))


@pytest.fixture(scope="module")
def small_t5():
    """A T5 that nobody has trained."""
    import flax.linen as nn
    import small_t5 as small

    from panda_jax.data.text_tokenizer import TextTokenizer
    from panda_jax.models import t5
    from panda_jax.store.backbones import Backbone

    config = dataclasses.replace(small.CONFIG, vocab_size=384)
    params = nn.meta.unbox(t5.init(jax.random.key(0), config))
    tokenizer = TextTokenizer.of_bytes()
    return Backbone("random:small", config, params, tokenizer, "f")


def test_memory_is_counted_by_shards(tiny):
    run = a_run(method="panda", recipe="released", prompt_length=20)
    outline = Outline(
        run,
        models.config("bert-tiny"),
        dtype="bfloat16",
        count=6,
        partitioner=elsewhere(4, 1, 2, chunk=1),
    )
    groups = outline.groups()
    # 6 lanes on 4 groups are padded to 8, two a group.
    prompt = 4 * (2 * 2 * 20 * 128 + 128 * 2 + 2)
    assert groups["prompts"] == groups["teachers"] == 2 * prompt
    # Two moments, and a counter.
    assert groups["optimizer"] == 2 * (2 * prompt + 4)
    whole = sum(x.size * 2 for x in jax.tree.leaves(tiny.params))
    assert whole / 2 < groups["backbone"] < 0.6 * whole


# FLOPs, bytes and collectives


def by_hand(c, *, rows, length, prompt, outputs, remat=False):
    """FLOPs of prompt-tuning's matrix products: forward (twice with remat),
    and back to the activations and the prompt; no weight has a gradient."""
    tokens = rows * length
    layer = 2 * tokens * (4 * c.width**2 + 2 * c.width * c.ffn)
    attention = 2 * 2 * tokens * (length + prompt) * c.width
    pooler = 2 * rows * c.width**2
    head = 2 * rows * c.width * outputs
    layers = (2 + remat) * layer + (3 + remat) * attention
    return c.layers * layers + 2 * pooler + 3 * head


@pytest.mark.parametrize(
    ("mesh", "chunk", "remat"), [((8, 1, 1), 1, False), ((4, 1, 2), 0, True)]
)
def test_flops_are_those_by_hand(mesh, chunk, remat):
    run = runs.make_run(
        task=TASK,
        backbone="random:bert-tiny",
        batch_size=4,
        max_length=64,
        remat=remat,
    )
    report = plan.plan(
        run,
        topology="cpu:8",
        fleet=16,
        partitioner=Partitioner(mesh_shape=mesh, chunk=chunk),
    )
    c = models.config("bert-tiny")
    lane = by_hand(c, rows=4, length=64, prompt=20, outputs=2, remat=remat)
    assert report["step"]["flops"] == pytest.approx(2 * lane, rel=2e-3)
    assert report["step"]["open_loops"] == 0
    assert report["fits"] is None
    kinds = set(report["collectives"])
    assert kinds == (set() if mesh[2] == 1 else kinds | {"all-reduce"})
    memory = report["memory"]
    assert memory["total"] > memory["temporaries"] > 0
    for name in ("backbone", "prompts", "optimizer", "data"):
        assert 0 < memory[name] < memory["arguments"]
    json.dumps(report, allow_nan=False)


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_loop_counts_as_often_as_it_runs():
    x = jnp.ones((16, 16))

    def body(x, w):
        return jnp.tanh(x @ w), None

    stack = jnp.ones((7, 16, 16))
    found = hlo.costs(compiled(lambda: jax.lax.scan(body, x, stack)[0]))
    assert found.flops == 7 * 2 * 16**3
    assert found.open_loops == 0

    def steps(count):
        return jax.lax.fori_loop(
            0, count, lambda _, x: jax.lax.scan(body, x, stack)[0], x
        )

    # A loop of unknown length alone is the loop over steps.
    step = hlo.costs(compiled(steps, 3))
    assert (step.flops, step.open_loops) == (7 * 2 * 16**3, 0)

    def nested(count):
        return jax.lax.fori_loop(
            0,
            count,
            lambda i, x: jax.lax.fori_loop(0, i, lambda _, y: y @ x, x),
            x,
        )

    step = hlo.costs(compiled(nested, 3))
    assert (step.flops, step.open_loops) == (2 * 16**3, 1)


def test_a_slice_of_a_stack_counts_as_a_slice():
    many, size = 64, 128
    stack = jnp.ones((many, size, size))
    x = jnp.ones((size, size))

    def body(x, w):
        return x @ w, None

    found = hlo.costs(
        compiled(lambda s, x: jax.lax.scan(body, x, s)[0], stack, x)
    )
    matrix = 4 * size**2
    # Each step: read the matrix (once, or sliced and read), x, write x.
    assert 3 * many * matrix <= found.bytes <= 8 * many * matrix


def test_collectives_in_loops_are_counted():
    mesh = jax.make_mesh(
        (8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    other = NamedSharding(mesh, PartitionSpec("model", None))
    whole = NamedSharding(mesh, PartitionSpec())
    x = jax.device_put(jnp.ones((16, 64)), whole)
    a = jax.device_put(jnp.ones((64, 64)), split)
    b = jax.device_put(jnp.ones((64, 64)), other)

    def stack(x, a, b):
        def layer(x, _):
            return jnp.tanh(jnp.tanh(x @ a) @ b), None

        return jax.lax.scan(layer, x, None, length=5)[0]

    found = hlo.costs(compiled(stack, x, a, b))
    assert dict(found.counts) == {"all-reduce": 5}
    assert dict(found.sent) == {"all-reduce": 5 * 16 * 64 * 4}
    assert found.flops == 5 * 2 * 2 * 16 * 64 * 64 / 8


# As libtpu writes it: products are convolutions, batches dilated windows,
# trip counts in conditions alone, S(1) on the chip, one all-gather in pieces.
TPU_TEXT = """HloModule step

%piece (p: f32[8]) -> f32[8,4] {
  %p = f32[8]{0} parameter(0)
  ROOT %gather.1 = f32[8,4]{1,0:S(1)} all-gather(%p), channel_id=45, \
dimensions={1}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion.1 (p: f32[8]) -> f32[8,4] {
  %p = f32[8]{0} parameter(0)
  ROOT %gather.2 = f32[8,4]{1,0:S(1)} all-gather(%p), channel_id=45, \
dimensions={1}, frontend_attributes={chain_id="0"}
}

%sliced (s: bf16[24,4,8], i: s32[]) -> bf16[4,8] {
  %s = bf16[24,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,4,8]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), \
dynamic_slice_sizes={1,4,8}
  ROOT %flat = bf16[4,8]{1,0} bitcast(%cut)
}

%outer (s: bf16[24,4,8], i: s32[]) -> bf16[4,8] {
  %s = bf16[24,4,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %inner = bf16[4,8]{1,0:S(1)} fusion(%s, %i), kind=kLoop, calls=%sliced
}

%body (arg: (s32[], bf16[24,4,8], f32[8])) -> (s32[], bf16[24,4,8], f32[8]) {
  %arg = (s32[]{:T(128)}, bf16[24,4,8]{2,1,0}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)S(1)} get-tuple-element(%arg), index=0
  %stack = bf16[24,4,8]{2,1,0} get-tuple-element(%arg), index=1
  %row = f32[8]{0} get-tuple-element(%arg), index=2
  %layer = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i), kind=kLoop, \
calls=%outer
  %lhs = f32[2,16,128,64]{3,2,1,0:S(1)} custom-call(), \
custom_call_target="AllocateBuffer"
  %rhs = f32[2,16,148,64]{3,2,1,0:S(1)} custom-call(), \
custom_call_target="AllocateBuffer"
  %scores = f32[2,16,128,148]{3,2,1,0:S(1)} convolution(%lhs, %rhs), \
window={size=2x16 stride=1x15 lhs_dilate=2x16}, dim_labels=01bf_01oi->01bf
  %async-collective-start = f32[8,4]{1,0:S(1)} fusion(%row), kind=kCustom, \
calls=%piece
  %more = f32[8,4]{1,0:S(1)} fusion(%row), kind=kCustom, \
calls=%async_collective_fusion.1
  ROOT %out = (s32[], bf16[24,4,8], f32[8]) tuple(%i, %stack, %row)
}

%condition (arg: (s32[], bf16[24,4,8], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %arg = (s32[], bf16[24,4,8], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (arg: (s32[], bf16[24,4,8], f32[8])) -> s32[] {
  %arg = (s32[], bf16[24,4,8], f32[8]) parameter(0)
  %loop = (s32[], bf16[24,4,8], f32[8]) while(%arg), condition=%condition, \
body=%body
  ROOT %done = s32[]{:S(1)} get-tuple-element(%loop), index=0
}
"""


def test_the_tpu_compiler_s_forms_are_read():
    found = hlo.costs(TPU_TEXT)
    # 2 x 16 products of [128, 64] and [64, 148].
    assert found.flops == 24 * 2 * 2 * 16 * 128 * 64 * 148
    assert dict(found.counts) == {"all-gather": 24}
    assert dict(found.sent) == {"all-gather": 24 * 8 * 4 * 4}
    # A layer's matrix, and the row that two fusions read.
    assert found.bytes == 24 * (2 * 4 * 8 + 2 * 4 * 8)


# What fits


@pytest.mark.parametrize(
    ("message", "needed", "usable"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory "
            "on HBM, the total memory required for HLO temporaries (17.60G) "
            "exceeds available HBM (15.75G). HLO module: jit_run_steps.",
            17.60,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used "
            "30.27G of 15.75G hbm. Exceeded hbm capacity by 14.52G.",
            30.27,
            15.75,
        ),
    ],
)
def test_the_compiler_s_refusal_is_read(message, needed, usable):
    found = plan._full(message)
    assert found == pytest.approx((needed * 2**30, usable * 2**30))
    assert plan._full("INTERNAL: something else (1G) of 2G") is None


@pytest.mark.parametrize("first", [1, 5, 40, 100])
@pytest.mark.parametrize("most", [0, 1, 37, 600])
def test_the_search_ends_at_the_largest_fleet(first, most):
    """With memory in proportion: whatever is claimed, a compiler has said."""
    tries = []

    def compiled(lanes):
        each = lanes // 4
        tries.append(each)
        total = {"total": 100.0 + each} if each <= most else {}
        return {
            "mesh": {"data": 4},
            "lanes": {"per_group": each},
            "memory": {"backbone": 90.0, "usable": 100.0 + most, **total},
            "fits": each <= most,
        }

    found = plan._largest(compiled(4 * first), compiled)
    assert len(tries) == len(set(tries)) <= plan.MOST_COMPILES
    if found["exact"]:
        assert found["fleet"] == 4 * most <= 4 * plan.MOST_LANES
    else:
        assert found["fleet"] <= 4 * most
    fitting = [each for each in tries if each <= most]
    assert found["fleet"] == 4 * max(fitting, default=0)
    assert found["exact"] or most < first or most > plan.MOST_LANES


def test_topologies_are_checked():
    assert chips.topology("v5e:4x4").count == 16
    assert chips.topology("v5p:2x2x2").count == 8
    assert chips.topology("v4:2x2x1").count == 4
    assert chips.topology("tpu7x:2x2x1").count == 8
    assert chips.topology("v5e:1x1").count == 1
    assert chips.topology("gpu:4").chip == chips.GPUS["h100"]
    for name in ("v5e:4", "v5p:4x4", "cpu:0", "cpu:", "h100:2x2", "v5e:0x4"):
        with pytest.raises(UserError, match="expected a number of chips"):
            chips.topology(name)
    with pytest.raises(UserError, match="Did you mean 'v5p' or 'v5e'"):
        chips.topology("v5:4x4")


# The verb


def verb(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "panda_jax", "plan", *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "XLA_FLAGS": "", **environment},
    )


def test_the_verb_makes_its_own_devices(tmp_path):
    """12 of them, and a gin file of `train` is one of `plan`."""
    done = verb(
        "--topology=a100:12",
        "--gin_file=runs/cb_panda.gin",
        "--backbone=random:bert-tiny",
        "--fleet=21",
        "--mesh_shape=6,1,2",
        "--max_length=16",
        f"--json={tmp_path / 'plan.json'}",
    )
    assert done.returncode == 0, done.stderr
    assert "Compiled for as many CPU devices" in done.stdout
    report = json.loads((tmp_path / "plan.json").read_text())
    assert report["settings"]["task"] == "cb"
    assert report["settings"]["dtype"] == "bfloat16"
    assert report["mesh"] == {"data": 6, "fsdp": 1, "model": 2}
    assert report["lanes"]["padded"] == 24
    assert (report["fits"], report["fits_by"]) == (True, "estimate")
    step = report["step"]
    seconds = step["flops"] / 312e12
    assert step["seconds"]["compute"] == pytest.approx(seconds)
    assert step["roofline_seconds"] == max(step["seconds"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v9:4"], "Unknown topology"),
        (["--topology=cpu:8", "--num_partitions=3"], "divisor of the 8"),
        (["--topology=cpu:8", "--backbone=bert-tinny"], "bert-tiny"),
        (["--topology=cpu:8", "--task=nope"], "Unknown task"),
        (["--topology=cpu:99", "--backbone=bert-tiny"], "99 CPU devices"),
        (
            ["--topology=cpu:8", "--backbone=bert-tiny", "--fleet=2"]
            + ["--method=model"],
            "fleet of one",
        ),
        (
            ["--topology=cpu:8", "--backbone=bert-tiny", "--max_length=600"],
            "Lower --max_length",
        ),
        ([], "needs --topology"),
    ],
)
def test_mistakes_are_said(arguments, words, capsys):
    assert cli.main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_without_libtpu_it_is_said(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "libtpu" else find(name, *rest),
    )
    with pytest.raises(UserError, match="pip install libtpu"):
        chips.devices(chips.topology("v5e:2x2"))


libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@libtpu
@pytest.mark.parametrize(
    "name", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1", "tpu7x:2x2x1"]
)
def test_libtpu_counts_devices_as_the_table_does(name):
    where = chips.topology(name)
    assert len(chips.devices(where)) == where.count


@libtpu
def test_a_tpu_slice_is_compiled_for(tmp_path):
    done = verb(
        "--topology=v5e:2x2",
        "--backbone=random:bert-tiny",
        "--task=toy_review",
        "--fleet=4",
        "--num_partitions=2",
        "--batch_size=4",
        "--max_length=64",
        "--no_search=true",
        f"--json={tmp_path / 'plan.json'}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "plan.json").read_text())
    assert (report["fits"], report["fits_by"]) == (True, "compiler")
    c = models.config("bert-tiny")
    lane = by_hand(c, rows=4, length=64, prompt=20, outputs=2)
    assert report["step"]["flops"] == pytest.approx(lane, rel=2e-3)
    assert report["collectives"]["all-reduce"]["count"] >= 8
    assert report["memory"]["usable"] == 15.75 * 2**30


@libtpu
def test_what_does_not_fit_is_said_by_the_compiler(tmp_path):
    """And what does is searched for: one lane a group does, three do not."""
    done = verb(
        "--topology=v5e:2x2",
        "--backbone=random:bert-tiny",
        "--fleet=12",
        "--batch_size=4096",
        f"--json={tmp_path / 'plan.json'}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "plan.json").read_text())
    assert (report["fits"], report["fits_by"]) == (False, "compiler")
    assert report["lacking"] > 0
    assert "step" not in report
    assert report["largest_fleet"]["fleet"] in (4, 8)
    assert report["largest_fleet"]["exact"]
