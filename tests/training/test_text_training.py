"""The loop on a text-to-text backbone, and model-tuning over devices."""

import dataclasses
import json

import jax
import made_up_data
import numpy as np
import pytest
import small_t5
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax import cli
from panda_jax.api import scoring
from panda_jax.config import runs
from panda_jax.errors import UserError
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import Prompt
from panda_jax.step import fleet
from panda_jax.store.prompt_folders import (
    PromptInfo,
    StoredPrompt,
    load_prompt,
    save_prompt,
)
from panda_jax.training import evaluation, prompt_init
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import Assembly
from panda_jax.training.trainer import Trainer

SMALL = {
    "max_length": small_t5.LENGTH,
    "batch_size": 16,
    "train_examples": 32,
    "eval_examples": 16,
    "epochs": 1,
    "prompt_length": 4,
    "quiet": True,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_t5.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("model", {"learning_rate": 3e-3, "optimizer": "adamw", "epochs": 40}),
        ("prompt", {"prompt_length": 20, "epochs": 150}),
    ],
)
def test_both_ways_overfit_32_rows_to_a_perfect_score(small, method, options):
    rows = evaluation.load_view(
        "toy_review",
        "train",
        backbone=small,
        max_length=small_t5.LENGTH,
        limit=32,
    )
    assert len(rows) == 32
    run = runs.make_run(
        task="toy_review",
        backbone=small.id,
        method=method,
        batch_size=32,
        eval_every=10,
        max_length=small_t5.LENGTH,
        **options,
    ).for_family(text_to_text=True)
    lane = Lane(run, "overfit", Needs())
    (done,) = Trainer(small, [lane], rows, rows, quiet=True).execute()
    result = done.result
    assert result["first_epoch"]["value"] < 0.8, "nothing was to be learnt"
    assert result["best"]["value"] == 1.0


def test_a_text_run_leaves_what_other_runs_leave(small, tmp_path):
    before = jax.device_get(small.params)
    done = pj.train(
        small, task="toy_review", model_dir=tmp_path / "run", **SMALL
    )
    same = jax.tree.map(np.array_equal, before, jax.device_get(small.params))
    assert all(jax.tree.leaves(same))
    stored = load_prompt(tmp_path / "run", fingerprint=small.fingerprint)
    assert stored.prompt.vectors.shape == (4, small.config.width)
    assert stored.prompt.head == {}
    assert done.result["parameters"]["trained"] == 4 * small.config.width
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert settings["optimizer"] == "adafactor"
    assert settings["prompt_init"] == "labels"
    found = pj.evaluate(stored, backbone=small.id, eval_examples=16)
    assert found["scores"] == done.result["best"]["scores"]


def test_rematerialised_is_the_same_run(small):
    runs_ = [
        pj.train(small, task="toy_review", remat=remat, **SMALL)
        for remat in (False, True)
    ]
    one, other = (run.prompt.prompt.vectors for run in runs_)
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_panda_on_text_is_taught_by_the_source_s_prompt(small, tmp_path):
    source = pj.train(small, task="toy_sentiment", **SMALL).prompt
    done = pj.train(
        small,
        task="toy_review",
        method="panda",
        recipe="ours",
        source=source,
        model_dir=tmp_path / "panda",
        **SMALL,
    )
    assert 0 < done.result["similarity"] <= 1
    lines = (tmp_path / "panda/metrics.jsonl").read_text().splitlines()
    steps_ = [json.loads(line) for line in lines if "kd_loss" in line]
    assert all(line["kd_loss"] > 0 for line in steps_)
    assert all(0 <= line["teacher_agreement"] <= 1 for line in steps_)


def test_text_prompts_are_scored_and_ranked(small):
    bank = {
        task: pj.train(small, task=task, **SMALL).prompt
        for task in small_t5.TASKS
    }
    scores = pj.score(sources=bank, targets=bank, backbone=small)
    for metric in scoring.DEFAULT_METRICS:
        values = scores.values[metric]
        assert np.diag(values) == pytest.approx(1, abs=1e-5), metric
        assert np.all(np.abs(values) <= 1 + 1e-5)
        assert abs(values[0, 1]) < 1 - 1e-6, metric
    contrast = pj.score(
        sources=bank,
        targets=bank,
        metrics=("panda",),
        backbone=small,
        contrast=True,
    )
    assert not np.allclose(contrast.values["panda"], scores.values["panda"])


def test_labels_of_a_text_task_are_its_answers(small):
    """The encoder's features by class; the text's own loss and gradient."""
    bank = {
        task: pj.train(small, task=task, **SMALL).prompt
        for task in small_t5.TASKS
    }
    scores = pj.score(
        sources=bank,
        targets=["toy_review", "toy_topic"],
        metrics=("logme", "h_score", "probe", "gradient", "first_steps"),
        backbone=small,
        max_length=small_t5.LENGTH,
        examples=24,
        steps=3,
    )
    for metric, values in scores.values.items():
        assert np.isfinite(values).all(), metric
        assert len(np.unique(values)) > 1, metric
    assert (np.abs(scores.values["gradient"]) <= 1).all()
    assert (scores.values["first_steps"] < 0).all()
    assert (scores.values["probe"] <= 1).all()


def test_a_deep_text_prompt_trains_and_says_which_metrics_fit(small, tmp_path):
    done = pj.train(small, task="toy_review", prompt_kind="deep", **SMALL)
    c = small.config
    shape = (c.decoder_layers, 2, 4, c.heads, c.head_dim)
    assert done.prompt.prompt.vectors.shape == shape
    bank = {"review": done.prompt}
    assert pj.score(sources=bank, targets=bank, metrics=("e_avg",))
    with pytest.raises(UserError, match="only the decoder sees"):
        pj.score(sources=bank, targets=bank, backbone=small)
    # Refused before a teacher is trained, and before a file is written.
    panda = {**SMALL, "task": "toy_review", "source": done.prompt}
    with pytest.raises(UserError, match="--similarity=NUMBER"):
        pj.train(small, method="panda", model_dir=tmp_path / "panda", **panda)
    assert not (tmp_path / "panda").exists()


@pytest.mark.parametrize("task", ["stsb", "conll04", "squad"])
def test_answers_without_label_words_are_written_out(small, task, made_up):
    rows = evaluation.load_view(
        task,
        "validation",
        backbone=small,
        max_length=32,
        limit=8,
        data_dir=made_up,
    )
    empty = Prompt(small.empty_vectors, {})
    spec = specs.get(task)
    found = evaluation.scores(small, empty, rows, spec=spec)
    assert set(found) == set(spec.metrics)
    assert all(np.isfinite(value) for value in found.values())


# Initialisers


def make(small, **settings):
    run = runs.make_run(task="toy_review", backbone=small.id, **settings)
    return run.for_family(text_to_text=small.text_to_text)


def test_a_prompt_begins_with_what_its_initialiser_says(small):
    table = np.asarray(small.params["token_embedder"]["embedding"])
    pieces = {tuple(row) for row in table}

    def vectors(**settings):
        run = make(small, prompt_length=6, **settings)
        return np.asarray(prompt_init.initial_prompt(run, small, None).vectors)

    drawn = vectors(prompt_init="vocabulary")
    assert {tuple(row) for row in drawn} <= pieces
    first, second = small.tokenizer.encode(["negative", "positive"])
    labelled = vectors(prompt_init="labels")
    np.testing.assert_allclose(labelled[0], table[first].mean(0), rtol=1e-6)
    np.testing.assert_allclose(labelled[1], table[second].mean(0), rtol=1e-6)
    (text,) = small.tokenizer.encode(["the film"])
    begun = vectors(prompt_init="text", init_text="the film")
    np.testing.assert_array_equal(begun[: len(text)], table[np.array(text)][:6])
    normal = vectors(prompt_init="normal", init_stddev=0.1)
    assert not {tuple(row) for row in normal} & pieces


def test_encoders_draw_words_and_no_special_pieces(tiny):
    run = runs.make_run(
        task="toy_review",
        backbone=tiny.id,
        prompt_kind="shallow",
        prompt_length=40,
        prompt_init="vocabulary",
    ).for_family(text_to_text=False)
    drawn = np.asarray(prompt_init.initial_prompt(run, tiny, None).vectors)
    table = np.asarray(tiny.params["token"]["embedding"])
    special = [0, tiny.tokenizer.unk_id, tiny.tokenizer.cls_id]
    assert set(special).isdisjoint(tiny.tokenizer.word_ids)
    ids = [int(np.flatnonzero((table == row).all(1))[0]) for row in drawn]
    assert set(ids) <= set(tiny.tokenizer.word_ids)


def stored(backbone, length, kind="shallow"):
    shape = (length, backbone.config.width)
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    info = PromptInfo("toy_topic", backbone.id, backbone.fingerprint, kind, "x")
    return StoredPrompt(Prompt(vectors, {}), info)


def test_a_source_of_another_length_is_cropped_or_padded(small):
    source = stored(small, 6)
    common = SMALL | {"task": "toy_review", "method": "pot", "source": source}
    with pytest.raises(UserError, match=r"length 6.*--resize_source=true"):
        pj.train(small, **common)
    for length in (4, 9):
        run = make(
            small, method="pot", prompt_length=length, resize_source=True
        )
        begun = prompt_init.initial_prompt(run, small, source).vectors
        assert begun.shape == (length, small.config.width)
        kept = min(length, 6)
        np.testing.assert_array_equal(
            begun[:kept], source.prompt.vectors[:kept]
        )
    del common["prompt_length"]
    done = pj.train(small, **common)
    assert done.prompt.prompt.length == 6, "the source's length by default"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_init": "text"}, "--init_text=TEXT belong together"),
        ({"init_text": "a film"}, "--prompt_init=text and"),
        (
            {"prompt_kind": "deep", "prompt_init": "labels"},
            "--prompt_kind=shallow",
        ),
        ({"prompt_init": "labels", "task": "stsb"}, "has no class labels"),
        ({"prompt_init": "labels", "prompt_length": 1}, "do not fit"),
    ],
)
def test_initialisers_that_do_not_fit_are_refused(
    small, settings, message, made_up
):
    given = SMALL | {"task": "toy_review", "data_dir": made_up} | settings
    with pytest.raises(UserError, match=message):
        pj.train(small, **given)


# Model-tuning


def losses(backbone, folder, **options):
    pj.train(
        backbone,
        task="toy_review",
        method="model",
        model_dir=folder,
        **{**SMALL, "epochs": 2, "learning_rate": 1e-3, **options},
    )
    lines = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 2, 4)])
def test_model_tuning_over_devices_is_model_tuning(small, tmp_path, shape):
    assert jax.device_count() == 8
    many = losses(small, tmp_path / "8", partitioner=Partitioner(1, shape))
    alone = losses(small, tmp_path / "1")
    np.testing.assert_allclose(many, alone, rtol=2e-4)
    # A tuned backbone is a folder that loads, with its vocabulary.
    found = pj.evaluate(tmp_path / "8", eval_examples=16)
    result = json.loads((tmp_path / "8/result.json").read_text())
    assert found["scores"] == result["best"]["scores"]


@pytest.mark.parametrize("family", ["small", "tiny"])
def test_optimizer_state_is_split_over_all_devices(request, family):
    backbone = request.getfixturevalue(family)
    rows = evaluation.load_view(
        "toy_review", "train", backbone=backbone, max_length=16, limit=16
    )
    run = runs.make_run(
        task="toy_review", backbone=backbone.id, method="model", epochs=1
    ).for_family(text_to_text=backbone.text_to_text)
    parts = Assembly(
        backbone,
        [Lane(run, "split", Needs())],
        rows,
        partitioner=Partitioner(num_partitions=2),
    )
    state = parts.start()

    def split(tree):
        """The share of a tree that the fullest device holds."""
        leaves = jax.tree.leaves(tree)
        held = dict.fromkeys(jax.devices(), 0)
        for shard in (s for leaf in leaves for s in leaf.addressable_shards):
            held[shard.device] += shard.data.nbytes
        return max(held.values()) / sum(leaf.nbytes for leaf in leaves)

    assert split(state.trainable.backbone) < 1.1 / 8
    assert split(state.opt_state) < 1.1 / 8
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    teachers = parts.load()
    state, _, _ = fleet.run_steps(
        state,
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
    leaves = jax.tree.leaves(state)
    after = [leaf.sharding for leaf in leaves]
    assert all(
        a.is_equivalent_to(b, leaf.ndim)
        for a, b, leaf in zip(before, after, leaves, strict=True)
    )


def test_partitions_that_do_not_divide_the_devices_are_refused(small):
    with pytest.raises(UserError, match=r"num_partitions is 3.*8 devices"):
        losses(small, None, partitioner=Partitioner(num_partitions=3))
    with pytest.raises(UserError, match=r"mesh_shape is \(3, 1, 1\)"):
        losses(small, None, partitioner=Partitioner(mesh_shape=(3, 1, 1)))


# The verbs


def test_npy_prompts_go_in_and_out_by_the_verbs(small, tmp_path, capsys):
    for seed, name in enumerate(["mrpc", "rte"]):
        vectors = np.random.default_rng(seed).normal(size=(5, 64))
        np.save(tmp_path / f"{name}.npy", vectors.astype(np.float32))
        args = ["npy", str(tmp_path / f"{name}.npy")]
        out = f"--out_dir={tmp_path / 'bank' / name}"
        bound = [f"--backbone={small.id}"] if name == "rte" else []
        assert cli.main(["import", *args, out, *bound]) == 0
        assert name in capsys.readouterr().out
    free = load_prompt(tmp_path / "bank/mrpc")
    assert (free.info.backbone, free.info.fingerprint) == (None, None)
    again = tmp_path / "again"
    args = ["npy", str(tmp_path / "bank/mrpc"), f"--out_dir={again}"]
    assert cli.main(["export", *args]) == 0
    expected = (tmp_path / "mrpc.npy").read_bytes()
    assert np.load(again / "mrpc.npy").tobytes() == expected[-5 * 64 * 4 :]
    args = ["peft", str(tmp_path / "bank/rte"), f"--out_dir={tmp_path / 'p'}"]
    assert cli.main(["export", *args]) == 0
    capsys.readouterr()
    args = ["peft", str(tmp_path / "p"), f"--out_dir={tmp_path / 'q'}"]
    assert cli.main(["import", *args, f"--backbone={small.id}"]) == 0
    back = load_prompt(tmp_path / "q", fingerprint=small.fingerprint)
    rte = load_prompt(tmp_path / "bank/rte")
    np.testing.assert_array_equal(back.prompt.vectors, rte.prompt.vectors)


def test_an_unbound_prompt_is_compared_and_nothing_else(small, tmp_path):
    free = stored(small, 5)
    info = dataclasses.replace(free.info, backbone=None, fingerprint=None)
    save_prompt(tmp_path / "a", free.prompt, info)
    bank = pj.PromptBank(tmp_path)
    scores = pj.score(sources=bank, targets=bank, metrics=("e_avg",))
    assert scores.values["e_avg"][0, 0] == pytest.approx(1)
    with pytest.raises(UserError, match="--backbone"):
        pj.score(sources=bank, targets=bank)
    with pytest.raises(UserError, match="--backbone"):
        pj.train(
            small, task="toy_review", method="pot", source=bank["a"], **SMALL
        )
    with pytest.raises(UserError, match="--backbone"):
        pj.evaluate(tmp_path / "a", task="toy_review")
    mixed = {"a": bank["a"], "b": stored(small, 5)}
    with pytest.raises(UserError, match="one backbone alone"):
        pj.score(sources=mixed, targets=mixed, metrics=("e_avg",))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import"], "needs FORMAT"),
        (["import", "npy"], "needs PATH"),
        (["import", "npy", "x.npy"], "needs --out_dir"),
        (["import", "onnx", "x", "--out_dir=y"], "Unknown format 'onnx'"),
        (["import", "npy", "none.npy", "--out_dir=y"], "does not exist"),
        (["import", "panda", ".", "--out_dir=y"], "--backbone"),
        (["export", "onnx", "x", "--out_dir=y"], "Unknown format 'onnx'"),
        (["export", "npy", "none", "--out_dir=y"], "does not exist"),
    ],
)
def test_the_verbs_mistakes_are_one_message(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_import_never_takes_the_place_of_other_files(tmp_path, capsys):
    np.save(tmp_path / "mrpc.npy", np.ones((5, 8), np.float32))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    args = ["import", "npy", str(tmp_path / "mrpc.npy")]
    assert cli.main([*args, f"--out_dir={tmp_path / 'full'}"]) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.tex").exists()
