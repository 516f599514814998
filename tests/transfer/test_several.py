"""Adaptive weights, and several sources for one target."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import panda_jax as pj
from panda_jax import cli
from panda_jax.api import scoring
from panda_jax.config.runs import make_run
from panda_jax.errors import UserError
from panda_jax.io.writers import read_metrics
from panda_jax.training import step_inputs
from panda_jax.training.evaluation import load_view
from panda_jax.training.lane import Lane, Needs
from panda_jax.training.step_inputs import Assembly
from panda_jax.transfer import scorer, source_fusion

SMALL = {
    "steps": 6,
    "train_examples": 32,
    "eval_examples": 16,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
    "quiet": True,
}
TASKS = ("toy_acceptability", "toy_sentiment", "toy_topic")


@pytest.fixture(scope="module")
def bank(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    for task in TASKS:
        pj.train(tiny, task=task, model_dir=folder / task, **SMALL)
    return folder


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    pj.train(tiny, task="toy_review", model_dir=folder, **SMALL)
    return folder


def panda(tiny, bank, own, **changes):
    options = {"sources": bank, "target_prompt": own, **SMALL, **changes}
    return pj.train(tiny, task="toy_review", method="panda", **options)


@pytest.mark.parametrize(
    ("transform", "values"),
    [
        ("clip", {-0.5: 0, 0.25: 0.25, 3: 1}),
        ("square", {-0.5: 0, 0.5: 0.25, 3: 1}),
        ("shift", {-1: 0, 0: 0.5, 1: 1, 5: 1}),
        ("sigmoid", {0: 0.5, 1000: 1, -1000: 0}),
    ],
)
def test_transforms(transform, values):
    for similarity, expected in values.items():
        found = source_fusion.factor(similarity, transform)
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_similarity_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="transfer_metric"):
        source_fusion.factor(float("nan"), "clip")
    with pytest.raises(UserError, match="clip"):
        source_fusion.factor(0.5, "clipp")


def test_the_metric_sets_the_weight_and_is_recorded(tiny, bank, own):
    source = pj.load_prompt(bank / "toy_topic")
    target = pj.load_prompt(own)
    for metric, transform in (("e_avg", "shift"), ("logme", "sigmoid")):
        done = panda(
            tiny,
            None,
            own,
            source=source,
            transfer_metric=metric,
            kd_transform=transform,
            kd_lambda=2.0,
        ).result
        label_free = metric == "e_avg"
        scores = pj.score(
            sources={"it": source},
            targets={"t": target} if label_free else ["toy_review"],
            metrics=(metric,),
            backbone=tiny,
            max_length=32,
            examples=32,
        )
        expected = float(scores.values[metric][0, 0])
        assert done["similarity"] == pytest.approx(expected)
        weight = 2.0 * source_fusion.factor(expected, transform)
        assert done["kd_weight"] == pytest.approx(weight)
        assert done["transfer_metric"] == metric
        assert done["kd_transform"] == transform


def test_early_fusion_starts_from_the_weighted_mean(tiny, bank, own, tmp_path):
    """And takes the k best, by the metric."""
    folder = tmp_path / "run"
    done = panda(tiny, bank, own, top_k=2, model_dir=folder)
    target = pj.load_prompt(own)
    scores = pj.score(
        sources=bank,
        targets={"toy_review": target},
        metrics=("panda",),
        backbone=tiny,
        max_length=32,
        examples=32,
    )
    best = scores.top("toy_review", k=2)
    names = [name for name, _ in best]
    assert done.result["source"] == "+".join(names)
    values = np.array([value for _, value in best])
    shares = np.clip(values, 0, 1) / np.clip(values, 0, 1).sum()
    mean = float(shares @ values)
    assert done.result["similarity"] == pytest.approx(mean, rel=1e-5)
    prompts = [pj.load_prompt(bank / name) for name in names]
    fused = source_fusion.fused(prompts, shares.tolist())
    expected = sum(
        share * p.prompt.vectors
        for share, p in zip(shares, prompts, strict=True)
    )
    np.testing.assert_allclose(fused.prompt.vectors, expected, rtol=1e-6)
    assert fused.prompt.head == {}
    teacher = pj.train(
        tiny,
        task="toy_review",
        method="pot",
        source=fused,
        **SMALL,
    )
    np.testing.assert_array_equal(
        pj.load_prompt(folder / "teacher").prompt.vectors,
        teacher.prompt.prompt.vectors,
    )
    assert done.result["choice"]["shares"] == pytest.approx(
        dict(zip(names, shares.tolist(), strict=True)), rel=1e-5
    )
    assert set(done.result["choice"]["scores"]) == set(TASKS)
    # Its gin file repeats the run, choice and weight included.
    again = tmp_path / "again"
    words = [
        f"--gin_file={folder / 'config.gin'}",
        f"--model_dir={again}",
        "--backbone=random:bert-tiny",
    ]
    assert cli.main(["train", *words]) == 0
    result = json.loads((again / "result.json").read_text())
    for name in ("run_id", "similarity", "kd_weight", "choice", "best"):
        assert result[name] == done.result[name], name


def test_what_was_chosen_stays_when_a_run_goes_on(
    tiny, bank, own, tmp_path, monkeypatch
):
    """Measured once: neither a finished run nor one that goes on asks again."""
    folder = tmp_path / "run"
    done = panda(tiny, bank, own, fusion="late", top_k=2, model_dir=folder)
    monkeypatch.setattr(
        scoring, "score", lambda **_: pytest.fail("measured again")
    )
    again = panda(tiny, bank, own, fusion="late", top_k=2, model_dir=folder)
    assert again.result == done.result
    (folder / "result.json").unlink()
    resumed = panda(tiny, bank, own, fusion="late", top_k=2, model_dir=folder)
    for name in ("run_id", "kd_weight", "choice", "best"):
        assert resumed.result[name] == done.result[name], name


def test_two_sources_of_one_task_are_two_teachers(tiny, bank, own, tmp_path):
    twins = {
        "a": pj.load_prompt(bank / "toy_topic"),
        "b": pj.train(tiny, task="toy_topic", seed=3, **SMALL).prompt,
    }
    folder = tmp_path / "run"
    done = panda(tiny, twins, own, fusion="late", model_dir=folder)
    assert set(done.result["choice"]["shares"]) == {"a", "b"}
    assert (folder / "teacher_a/result.json").exists()
    assert (folder / "teacher_b/result.json").exists()


def test_a_weight_of_zero_is_said_and_unbounded_metrics_have_none(
    tiny, bank, own
):
    source = pj.load_prompt(bank / "toy_topic")
    options = {"source": source, "transfer_metric": "first_steps"}
    with pytest.warns(RuntimeWarning, match="weight is 0"):
        done = panda(tiny, None, own, kd_transform="clip", **options)
    assert done.result["kd_weight"] == 0
    done = panda(tiny, None, own, **options)
    assert 0 < done.result["kd_weight"] < 1
    assert done.result["kd_transform"] == "sigmoid"


def test_a_metric_of_labels_reads_the_run_s_rows_alone(
    tiny, bank, own, monkeypatch
):
    asked = []
    load = scorer.load_view

    def watched(task, split, **options):
        asked.append(options["limit"])
        return load(task, split, **options)

    monkeypatch.setattr(scorer, "load_view", watched)
    for metric in ("logme", "first_steps"):
        panda(
            tiny,
            None,
            own,
            source=pj.load_prompt(bank / "toy_topic"),
            transfer_metric=metric,
        )
    assert asked == [SMALL["train_examples"]] * 2


def test_late_fusion_mixes_the_teachers_logits(
    tiny, bank, own, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    done = panda(tiny, bank, own, fusion="late", model_dir=folder)
    result = done.result
    shares = result["choice"]["shares"]
    assert set(shares) == set(result["choice"]["scores"]) == set(TASKS)
    assert sum(shares.values()) == pytest.approx(1)
    assert result["source"].split("+") == list(shares)
    assert result["kd_weight"] > 0
    for task in TASKS:
        assert (folder / f"teacher_{task}/result.json").exists()
    # Computed in the step, the mixed teachers say the same.
    monkeypatch.setattr(step_inputs, "MOST_CACHED", 0)
    online = panda(tiny, bank, own, fusion="late", model_dir=tmp_path / "on")
    assert online.result["choice"] == result["choice"]
    losses = [
        [
            line["kd_loss"]
            for line in read_metrics(x / "metrics.jsonl")
            if "kd_loss" in line
        ]
        for x in (folder, tmp_path / "on")
    ]
    assert min(losses[0]) > 0
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_cached_mixtures_are_weighted_means(tiny, bank, own):
    prompts = [pj.load_prompt(own), pj.load_prompt(own)]
    other = pj.train(tiny, task="toy_review", seed=1, **SMALL).prompt
    run = make_run(
        task="toy_review", backbone=tiny.id, prompt_length=4, batch_size=8
    ).for_family(text_to_text=False)
    rows = load_view(
        "toy_review", "train", backbone=tiny, max_length=32, limit=16
    )

    def taught(*mixture):
        lane = Lane(run, "x", Needs(teacher=mixture[0][0], mixture=mixture))
        return Assembly(tiny, [lane], rows).teachers()[0][0]

    one, two = taught((prompts[0], 1.0)), taught((other, 1.0))
    assert not np.allclose(one, two)
    np.testing.assert_allclose(
        taught((prompts[0], 0.25), (other, 0.75)),
        0.25 * one + 0.75 * two,
        rtol=1e-5,
    )


def test_mixtures_of_several_sizes_share_a_fleet(tiny, bank, own, monkeypatch):
    """Online: a lane with fewer teachers has some of weight 0."""
    monkeypatch.setattr(step_inputs, "MOST_CACHED", 0)
    a = pj.load_prompt(own)
    b = pj.train(tiny, task="toy_review", seed=1, **SMALL).prompt
    run = make_run(
        task="toy_review", backbone=tiny.id, prompt_length=4, batch_size=8
    ).for_family(text_to_text=False)
    rows = load_view(
        "toy_review", "train", backbone=tiny, max_length=32, limit=16
    )
    lanes = [
        Lane(run, "x", Needs(teacher=a, mixture=((a, 0.5), (b, 0.5)))),
        Lane(run, "y", Needs(teacher=b)),
        Lane(run, "z", Needs()),
    ]
    _, online = Assembly(tiny, lanes, rows).teachers()
    np.testing.assert_allclose(online.weights, [[0.5, 0.5], [1, 0], [0, 0]])
    np.testing.assert_array_equal(
        jnp.asarray(online.prompts.vectors)[1, 0], b.prompt.vectors
    )


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("makes no use of sources", {"method": "prompt"}),
        ("give --sources alone", {"source": "BANK/toy_topic"}),
        ("--fusion=late", {"method": "pot", "fusion": "late"}),
        ("fusion", {"fusion": "middle"}),
        ("top_k", {"top_k": 0}),
        ("transfer_metric", {"transfer_metric": "pandas"}),
        ("no prompt of a task other", {"task": "toy_topic", "only": True}),
    ],
)
def test_what_does_not_fit_is_refused(tiny, bank, words, changes):
    changes = dict(changes)
    options = {"task": "toy_review", "method": "panda", "sources": bank}
    if changes.pop("only", False):
        options["sources"] = [bank / "toy_topic"]
    if "source" in changes:
        changes["source"] = bank / "toy_topic"
    with pytest.raises(UserError, match=words):
        pj.train(tiny, **{**options, **SMALL, **changes})


def test_sources_of_two_lengths_are_fused_late_or_not(tiny, bank, own):
    longer = pj.train(
        tiny, task="toy_topic", **{**SMALL, "prompt_length": 6}
    ).prompt
    mixed = {"a": pj.load_prompt(bank / "toy_sentiment"), "b": longer}
    with pytest.raises(UserError, match="--fusion=late"):
        source_fusion.fused(list(mixed.values()), [0.5, 0.5])
    late = {"sources": mixed, "fusion": "late", "prompt_length": 4}
    done = panda(tiny, None, own, **late)
    assert set(done.result["choice"]["shares"]) == {"a", "b"}
    # Teachers with dropout run in the step, side by side.
    with pytest.raises(UserError, match="of one shape"):
        panda(tiny, None, own, recipe="released", **late)


def test_the_target_s_prompt_is_checked_beside_sources(tiny, bank):
    with pytest.raises(UserError, match="was tuned on 'toy_topic'"):
        panda(tiny, bank, bank / "toy_topic")
