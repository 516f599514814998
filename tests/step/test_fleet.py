"""Lanes trained together are what each is alone, on any mesh."""

import dataclasses
import logging
import math
import re
import sys

import jax
import numpy as np
import pytest

import panda_jax as pj
from panda_jax import models
from panda_jax.config import registry, runs
from panda_jax.errors import UserError
from panda_jax.io.writers import read_metrics
from panda_jax.parallel.sharding import Partitioner
from panda_jax.step import fleet
from panda_jax.training import evaluation, lane_memory, trainer
from panda_jax.training.checkpoints import Checkpoints
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import Assembly, bucket, step_spec
from panda_jax.training.trainer import Trainer

TASK = "toy_review"
# Sums in another order: what eight devices may differ by from one. Adam divides
# by the root of what may be nearly nothing, so a step is at most 0.3% off.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}


@pytest.fixture(scope="module")
def rows(tiny):
    options = {"backbone": tiny, "max_length": 16}
    return (
        evaluation.load_view(TASK, "train", limit=40, **options),
        evaluation.load_view(TASK, "validation", limit=16, **options),
    )


@pytest.fixture(scope="module")
def source(tiny):
    return pj.train(
        tiny,
        task=TASK,
        prompt_length=4,
        max_length=16,
        train_examples=16,
        eval_examples=8,
        epochs=1,
        quiet=True,
    ).prompt


def lane(number, source, **changes):
    """Of each a little: methods, rates, weights, schedules, seeds."""
    method = ("prompt", "pot", "panda")[number % 3]
    settings = {
        "task": TASK,
        "backbone": "random:bert-tiny",
        "method": method,
        "prompt_length": 4,
        "max_length": 16,
        "batch_size": 8,
        "epochs": 2,
        "learning_rate": 0.01 * (1 + number),
        "schedule": registry.SCHEDULES[number % 2],
        "seed": number,
        **changes,
    }
    run = runs.make_run(**settings).for_family(text_to_text=False)
    needs = {
        "prompt": Needs(),
        "pot": Needs(source=source),
        "panda": Needs(source, source, 0.5, 0.5),
    }[method]
    return Lane(run, f"run-{number}", needs)


def final(fleet_):
    """The lanes' states at the end and the loss of each step."""
    losses = []
    log = fleet_._log

    def spy(begin, end, metrics):
        losses.append(np.asarray(metrics["loss"])[: end - begin])
        log(begin, end, metrics)

    fleet_._log = spy
    states = fleet_._train(fleet_.parts.start(), None, 0)
    count = len(fleet_.lanes)
    prompts = jax.device_get(states.trainable.prompt)
    return (
        np.concatenate(losses)[:, :count],
        jax.tree.map(lambda x: x[:count], prompts),
        jax.device_get(states.stopped)[:count],
    )


@pytest.fixture
def padded(monkeypatch):
    """One program of padded batches, as on accelerators."""
    monkeypatch.setenv("PANDA_CPU_TRICKS", "0")


def each_alone(tiny, rows, source):
    """Losses [S, 8] and prompts [8, ...] of eight runs, each alone."""
    found = [
        final(Trainer(tiny, [lane(n, source)], *rows, quiet=True))
        for n in range(8)
    ]
    losses = np.concatenate([x[0] for x in found], axis=1)
    prompts = jax.tree.map(lambda *x: np.concatenate(x), *[x[1] for x in found])
    return losses, prompts


@pytest.fixture(scope="module")
def solo(tiny, rows, source):
    return each_alone(tiny, rows, source)


@pytest.fixture(scope="module")
def solo_padded(tiny, rows, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PANDA_CPU_TRICKS", "0")
        return each_alone(tiny, rows, source)


def close(found, wanted, **tolerance):
    np.testing.assert_allclose(found[0], wanted[0], **tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
        found[1],
        wanted[1],
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 1, 4), (2, 2, 2)])
def test_a_fleet_on_a_mesh_is_its_runs_alone(
    tiny, rows, source, solo_padded, shape
):
    lanes = [lane(n, source) for n in range(8)]
    partitioner = Partitioner(mesh_shape=shape)
    together = final(
        Trainer(tiny, lanes, *rows, quiet=True, partitioner=partitioner)
    )
    close(together, solo_padded, **TOLERANCE)


def test_a_fleet_of_one_device_is_its_runs_alone_bit_for_bit(
    tiny, rows, source, solo
):
    lanes = [lane(n, source) for n in range(8)]
    together = final(Trainer(tiny, lanes, *rows, quiet=True))
    close(together, solo, rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [0, 3])
def test_chunks_change_nothing(tiny, rows, source, solo_padded, chunk):
    lanes = [lane(n, source) for n in range(8)]
    partitioner = Partitioner(mesh_shape=(1, 1, 8), chunk=chunk)
    together = Trainer(tiny, lanes, *rows, quiet=True, partitioner=partitioner)
    assert together.parts.layout.chunk == chunk
    close(final(together), solo_padded, **TOLERANCE)


def test_a_chunk_is_as_many_lanes_as_should_fit():
    large = dataclasses.replace(models.config("bert-large"), dtype="bfloat16")
    lane_ = lane_memory.lane_bytes(large, rows=16, positions=148)
    # The TPU compiler's own: (20.64 - 4.13) GiB for five lanes more.
    assert lane_ == pytest.approx((20.64 - 4.13) / 5 * 2**30, rel=0.1)
    again = dataclasses.replace(large, remat=True)
    assert lane_memory.lane_bytes(again, rows=16, positions=148) < lane_ / 6
    one = lane_memory.lane_bytes(large, rows=8, positions=148)
    assert one == pytest.approx(lane_ / 2)

    def at_once(memory):
        return lane_memory.choose(
            large,
            rows=16,
            positions=148,
            targets=0,
            mesh={"data": 4, "fsdp": 1, "model": 1},
            dims=1,
            here=6,
            memory=memory,
        )

    assert [at_once(n * 10**9) for n in (1, 8, 16, 80)] == [1, 1, 3, 0]


@pytest.mark.parametrize("chunk", ["0", "2"])
def test_a_chunk_can_be_asked_for(chunk):
    asked = Partitioner.of_flags(None, None, 1, int(chunk))
    assert asked is not None
    assert asked.chunk == int(chunk)
    assert Partitioner.of_flags(None, None, 1, None) is None
    with pytest.raises(UserError, match="chunk is -1"):
        Partitioner.of_flags(None, None, 1, -1)


def test_five_lanes_on_four_devices(tiny, rows, source, solo_padded):
    lanes = [lane(n, source) for n in range(5)]
    partitioner = Partitioner(mesh_shape=(4, 1, 2))
    together = Trainer(tiny, lanes, *rows, quiet=True, partitioner=partitioner)
    assert together.parts.padded == 8
    found = final(together)
    losses, prompts = solo_padded
    wanted = losses[:, :5], jax.tree.map(lambda x: x[:5], prompts)
    close(found, wanted, **TOLERANCE)


def test_one_lane_takes_the_devices_for_its_batch(
    tiny, rows, source, solo_padded
):
    partitioner = Partitioner()
    alone = Trainer(
        tiny, [lane(3, source)], *rows, quiet=True, partitioner=partitioner
    )
    assert dict(alone.parts.mesh.shape) == {"data": 1, "fsdp": 8, "model": 1}
    losses, prompts = solo_padded
    wanted = losses[:, 3:4], jax.tree.map(lambda x: x[3:4], prompts)
    close(final(alone), wanted, **TOLERANCE)


# What diverges, ends early, or does not fit


def test_a_lane_that_diverges_ends_alone(tiny, rows, source, solo, tmp_path):
    lanes = [lane(n, source) for n in range(4)]
    wild = lane(2, source, learning_rate=1e30, clip=1.0)
    lanes[2] = Lane(wild.run, "wild", wild.needs)
    for one in lanes:
        one.folder = tmp_path / one.run_id
        one.folder.mkdir()
    together = Trainer(tiny, lanes, *rows, quiet=True)
    found = final(together)
    assert found[2].tolist()[2] >= 0
    assert [n for n in found[2].tolist() if n >= 0] == [found[2][2]]
    losses, prompts = solo
    for n in (0, 1, 3):
        np.testing.assert_array_equal(found[0][:, n], losses[:, n])
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_array_equal(a[n], b[n]),
            found[1],
            prompts,
        )
    error = lanes[2].tracking.error
    assert re.search(r"Run wild: \w+ is (nan|inf) at step \d+", error)
    assert all(np.isfinite(x[2]).all() for x in jax.tree.leaves(found[1]))
    assert [one.tracking.error is None for one in lanes] == [1, 1, 0, 1]
    results = together._finish(together.parts.start())
    assert isinstance(results[2], UserError)
    assert not (tmp_path / "wild" / "result.json").exists()
    assert (tmp_path / "run-3" / "result.json").exists()
    last = read_metrics(tmp_path / "wild" / "metrics.jsonl")[-1]
    assert last["step"] == lanes[2].tracking.ended


def test_a_learning_rate_of_a_million_harms_nobody_else(
    tiny, rows, source, solo
):
    lanes = [lane(n, source) for n in range(4)]
    lanes[1] = lane(1, source, learning_rate=1e6)
    found = final(Trainer(tiny, lanes, *rows, quiet=True))
    for n in (0, 2, 3):
        np.testing.assert_array_equal(found[0][:, n], solo[0][:, n])
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_array_equal(a[n], b[n]),
            found[1],
            solo[1],
        )
    assert not np.allclose(found[0][:, 1], solo[0][:, 1])


def test_rows_of_like_length_are_padded_alike(tiny):
    widths = {
        evaluation.load_view(
            TASK, "train", backbone=tiny, max_length=most, limit=20
        ).tokens.shape[1]
        for most in (60, 64)
    }
    assert len(widths) == 1
    assert widths.pop() % 16 == 0
    short = evaluation.load_view(
        TASK, "train", backbone=tiny, max_length=10, limit=20
    )
    assert short.tokens.shape[1] == 10, "never longer than asked for"


def test_patience_ends_a_lane_and_not_the_others(tiny, rows, source):
    settings = {"epochs": 6, "learning_rate": 1e-9}
    lanes = [
        lane(0, source, patience=2, **settings),
        lane(0, source, seed=9, **settings),
    ]
    lanes[1].run_id = "other"
    results = Trainer(tiny, lanes, *rows, quiet=True).execute()
    assert [x.result["steps"] for x in results] == [15, 30]
    assert results[0].result["best"]["step"] == 5
    alone = lane(0, source, patience=2, **settings)
    (done,) = Trainer(tiny, [alone], *rows, quiet=True).execute()
    assert done.result["steps"] == 15
    assert done.result["best"] == results[0].result["best"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 4}, "share batch_size"),
        ({"prompt_length": 5}, "share prompt_length"),
        ({"recipe": "ours", "method": "panda"}, "the distillation's recipe"),
        ({"method": "finetune"}, "fleet of one"),
    ],
)
def test_lanes_that_share_no_step_are_refused(
    tiny, rows, source, changes, words
):
    first, other = lane(0, source), lane(0, source)
    run = runs.make_run(**({**_fields(other.run)} | changes))
    if changes.get("method") == "finetune":
        first = Lane(run, "first", Needs())
    with pytest.raises(UserError, match=words):
        Trainer(tiny, [first, Lane(run, "other", Needs())], *rows)


def _fields(run):
    return {name: getattr(run, name) for name in run.__dataclass_fields__}


# What a step costs beside its arithmetic


def compiled(tiny, rows, source, shape):
    lanes = [lane(n, source) for n in range(8)]
    parts = Assembly(
        tiny, lanes, rows[0], partitioner=Partitioner(mesh_shape=shape)
    )
    teachers = parts.load()
    lowered = fleet.run_steps.lower(
        parts.start(),
        parts.place(np.int32(0)),
        parts.frozen(),
        next(parts.feeds(0)),
        teachers,
        parts.hypers(),
        spec=parts.step_spec,
        lanes=parts.layout,
        most=10,
        layout=parts.state_layout,
    )
    return parts, lowered.compile().as_text()


COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?:-start)?\("
)


def test_lanes_over_data_move_nothing(tiny, rows, source):
    _, text = compiled(tiny, rows, source, (8, 1, 1))
    assert COLLECTIVE.findall(text) == []


def test_model_parallelism_moves_activations_only(tiny, rows, source):
    parts, text = compiled(tiny, rows, source, (2, 1, 4))
    moved = [
        (kind, tuple(int(n) for n in dims.split(",") if n not in ("", "1")))
        for shapes, kind in COLLECTIVE.findall(text)
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
    c = tiny.config
    activation = 8 * (16 + 4) * max(c.ffn, c.width)  # rows x positions x F
    assert {kind for kind, _ in moved} <= {"all-reduce", "all-gather"}
    assert max(math.prod(shape) for _, shape in moved) <= activation
    weights = {x.shape for x in jax.tree.leaves(tiny.params)}
    weights |= {shape[1:] for shape in weights}
    weights = {shape for shape in weights if math.prod(shape) >= c.width**2}
    assert not weights & {shape for _, shape in moved}
    # What is gathered is a gradient, once a trained leaf; the optimizer's
    # moments, twice as many arrays of the same shapes, stay.
    trained = jax.tree.leaves(parts.start().trainable)
    gathered = [shape for kind, shape in moved if kind == "all-gather"]
    assert len(gathered) <= len(trained)


def test_a_run_compiles_once_and_moves_nothing_to_the_device(
    tiny, rows, source, monkeypatch, caplog, padded
):
    # Ten rows are a shape that no other test here has compiled.
    lanes = [lane(n, source, epochs=3, batch_size=10) for n in range(3)]
    together = Trainer(tiny, lanes, *rows, quiet=True)
    calls = []
    real = fleet.run_steps

    def guarded(*args, **options):
        calls.append(1)
        with jax.transfer_guard_host_to_device("disallow_explicit"):
            return real(*args, **options)

    monkeypatch.setattr(fleet, "run_steps", guarded)
    before = real._cache_size()
    # Whatever an earlier test made of JAX's logging.
    dispatch = logging.getLogger("jax._src.dispatch")
    monkeypatch.setattr(dispatch, "handlers", [caplog.handler])
    caplog.set_level(logging.DEBUG, logger=dispatch.name)
    together.execute()
    assert len(calls) == 3, "one dispatch an epoch of four steps"
    assert real._cache_size() - before == 1
    # Ahead of the first dispatch, which finds what was compiled.
    compiled = {
        record.getMessage()
        for record in caplog.records
        if "Finished XLA compilation of" in record.getMessage()
    }
    assert sum("run_steps" in message for message in compiled) == 1


def test_a_dispatch_costs_no_python_that_grows_with_lanes(
    tiny, rows, source, monkeypatch
):
    """Calls of Python functions between two dispatches that log nothing."""
    real, counts = Trainer._log, []

    def counted(self, begin, end, metrics):
        calls = []
        sys.setprofile(lambda frame, event, _: calls.append(event == "call"))
        real(self, begin, end, metrics)
        sys.setprofile(None)
        if end % 40:
            counts[-1].append(sum(calls))

    monkeypatch.setattr(Trainer, "_log", counted)
    monkeypatch.setattr(trainer, "LOG_EVERY", 1000)
    for size in (2, 8):
        lanes = [lane(n, source, batch_size=1, epochs=1) for n in range(size)]
        counts.append([])
        Trainer(tiny, lanes, *rows, quiet=True).execute()
    few, many = (sorted(x)[len(x) // 2] for x in counts)
    assert len(counts[0]) == 3
    assert 0 < many < few + 6


def test_the_step_is_given_what_the_run_says(tiny):
    """Each setting at another value than its default, and both dropouts."""
    asked = {
        "clip": 0.3,
        "temperature": 5.0,
        "accumulate": 2,
        "optimizer": "adafactor",
    }
    run = lane(2, None, **asked, remat=True, dropout=0.25).run
    spec = step_spec(run, tiny)
    assert {name: getattr(spec, name) for name in asked} == asked
    c = spec.config
    assert (c.remat, c.dropout, c.attention_dropout) == (True, 0.25, 0.25)
    quiet = step_spec(lane(2, None, dropout=0.0).run, tiny).config
    assert quiet.dropout == quiet.attention_dropout == 0.0
    own = dataclasses.replace(tiny.config, dropout=0.4, attention_dropout=0.3)
    backbone = dataclasses.replace(tiny, config=own)
    assert step_spec(lane(0, None).run, backbone).config == own
    forms = {
        name: step_spec(lane(2, None, recipe=name).run, tiny)
        for name in ("paper", "released", "ours")
    }
    assert [x.kd_form for x in forms.values()] == ["mse", "mse", "kl"]
    assert [x.teacher_dropout for x in forms.values()] == [False, True, False]
    # Of a run without a teacher a recipe changes nothing.
    plain = step_spec(lane(0, None).run, tiny)
    assert plain == step_spec(lane(1, None).run, tiny) == forms["paper"]


def test_lanes_scalars_are_their_runs_own(tiny, rows, source):
    lanes = [
        lane(0, source, weight_decay=0.1, schedule="exponential"),
        lane(1, source, weight_decay=0.2, schedule="linear"),
        lane(2, source, weight_decay=0.3, schedule="constant"),
    ]
    lanes[2].needs = dataclasses.replace(lanes[2].needs, kd_weight=0.7)
    hypers = Assembly(tiny, lanes, rows[0]).hypers()
    for name, wanted in {
        "learning_rate": [0.01, 0.02, 0.03],
        "weight_decay": [0.1, 0.2, 0.3],
        "total_steps": [np.inf, 10, np.inf],
        "epoch_decay": [0.95, 1, 1],
        "epoch_steps": [5, 5, 5],
        "kd_weight": [0, 0, 0.7],
    }.items():
        found = np.asarray(getattr(hypers, name))
        np.testing.assert_array_equal(found, np.float32(wanted), name)
    keys = [jax.random.fold_in(jax.random.key(n), 1) for n in range(3)]
    np.testing.assert_array_equal(
        jax.random.key_data(hypers.key),
        [jax.random.key_data(key) for key in keys],
    )


def test_the_first_epoch_s_score_is_that_of_its_end(
    tiny, rows, source, monkeypatch
):
    """Though the split is scored before it, too."""
    scores = iter([0.3, 0.9, 0.5, 0.6, 0.9, 0.1])
    monkeypatch.setattr(
        trainer.evaluation,
        "fleet_scores",
        lambda *args, **options: [{"accuracy": next(scores)}],
    )
    one = lane(0, source, eval_period=2)
    (done,) = Trainer(tiny, [one], *rows, quiet=True).execute()
    # After 2, 4, 5 (an epoch), 6, 8 and 10 updates.
    assert next(scores, None) is None
    assert done.result["first_epoch"] == {"value": 0.5}
    assert done.result["final"] == {"value": 0.1}
    # Of two that are equal the earlier.
    best = done.result["best"]
    assert (best["value"], best["step"]) == (0.9, 4)


def test_lanes_that_are_left_go_on_from_what_was_their_own(
    tiny, rows, tmp_path, monkeypatch
):
    """Fewer, and in another order: prompts, moments, steps and scores."""

    def lanes(numbers):
        # Every third needs no source.
        return [lane(3 * n, None) for n in numbers]

    wanted = final(Trainer(tiny, lanes(range(3)), *rows, quiet=True))
    begun = lanes(range(3))
    whole = Trainer(tiny, begun, *rows, quiet=True, folder=tmp_path)
    real = Trainer._save

    def killed(self, checkpoints, states):
        real(self, checkpoints, states)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        whole.execute()
    monkeypatch.undo()
    for numbers in ([2, 0], [1, 2, 0]):
        left = lanes(numbers)
        rest = Trainer(tiny, left, *rows, quiet=True, folder=tmp_path)
        saved = Checkpoints(tmp_path)
        states, step = rest._restored(rest.parts.start(), saved)
        saved.close()
        assert step == 5
        for number, one in zip(numbers, left, strict=True):
            assert one.tracking == begun[number].tracking
        states = rest._train(states, None, step)
        found = jax.device_get(states.trainable.prompt)
        for place, number in enumerate(numbers):
            jax.tree.map(
                lambda a, b, p=place, n=number: np.testing.assert_array_equal(
                    a[p], b[n]
                ),
                found,
                wanted[1],
            )


def test_tasks_of_like_size_share_a_compilation():
    assert [bucket(n) for n in (1, 2, 3, 5, 9, 33, 250, 3668)] == [
        1, 2, 3, 5, 10, 40, 256, 4096,
    ]  # fmt: skip
    for n in range(1, 3000):
        assert n <= bucket(n) <= max(n + 1, 1.25 * n)


def test_accumulated_gradients_are_those_of_the_batch(tiny, rows, source):
    whole = lane(0, source, dropout=0.0)
    parts = lane(0, source, dropout=0.0, accumulate=4)
    found = [
        final(Trainer(tiny, [one], *rows, quiet=True)) for one in (whole, parts)
    ]
    close(found[0], found[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="divisor of the batch_size"):
        lane(0, source, accumulate=3)


def test_rows_that_do_not_fit_the_device_are_fed_by_dispatch(
    tiny, rows, source, monkeypatch, padded
):
    lanes = [lane(n, source) for n in range(3)]
    wanted = final(Trainer(tiny, lanes, *rows, quiet=True))
    monkeypatch.setattr("panda_jax.training.step_inputs.MOST_RESIDENT", 0)
    lanes = [lane(n, source) for n in range(3)]
    streamed = Trainer(tiny, lanes, *rows, quiet=True)
    close(final(streamed), wanted, rtol=0, atol=0)
    assert streamed.parts._resident is None


def test_a_fleet_writes_run_folders_and_resumes(
    tiny, source, tmp_path, monkeypatch
):
    common = {
        "task": TASK,
        "prompt_length": 4,
        "max_length": 16,
        "batch_size": 8,
        "train_examples": 40,
        "eval_examples": 16,
        "epochs": 3,
    }
    lanes = {
        "prompt": {**common, "seed": 1},
        "pot": {**common, "method": "pot", "source": source},
        "panda": {
            **common,
            "method": "panda",
            "source": source,
            "teacher": None,
            "similarity": 0.5,
        },
    }
    options = {"quiet": True, "out_dir": tmp_path / "fleet"}
    # Killed, as it were, after the second epoch's checkpoint.
    real = trainer.Trainer._save

    def save(self, checkpoints, states):
        real(self, checkpoints, states)
        if len(self.lanes) == 3 and int(states.step[0]) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        pj.train_fleet(tiny, lanes, **options)
    monkeypatch.undo()
    found = pj.train_fleet(tiny, lanes, **options)
    assert list(found) == list(lanes)
    for name, settings in lanes.items():
        folder = tmp_path / "fleet" / name
        assert {"run.json", "config.gin", "metrics.jsonl", "prompt"} <= {
            path.name for path in folder.iterdir()
        }
        alone = pj.train(tiny, **settings, quiet=True)
        np.testing.assert_array_equal(
            found[name].prompt.prompt.vectors, alone.prompt.prompt.vectors
        )
        assert found[name].result["best"] == alone.result["best"]
        assert found[name].result["run_id"] == alone.result["run_id"]
    again = pj.train_fleet(tiny, lanes, **options)
    assert [x.result for x in again.values()] == [
        x.result for x in found.values()
    ]


@pytest.mark.parametrize(
    ("changes", "shape", "layers", "unrolled"),
    [
        ({}, None, 2, True),
        ({"remat": True}, None, 2, False),
        ({}, (2, 1, 4), 2, False),
        ({}, None, 13, False),
    ],
)
def test_layers_are_compiled_one_by_one_on_a_lone_cpu(
    tiny, rows, source, changes, shape, layers, unrolled
):
    config = dataclasses.replace(tiny.config, layers=layers)
    backbone = dataclasses.replace(tiny, config=config)
    one = lane(0, source)
    one = dataclasses.replace(one, run=dataclasses.replace(one.run, **changes))
    mesh = shape and Partitioner(mesh_shape=shape)
    parts = Assembly(backbone, [one], rows[0], partitioner=mesh)
    assert parts.step_spec.config.unroll == unrolled
