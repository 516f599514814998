"""What is chosen on, what is reported, and how often was looked."""

import json

import numpy as np
import pytest
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax.data import loading
from panda_jax.training import evaluation

SMALL = {
    "train_examples": 60,
    "eval_examples": 32,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
    "epochs": 3,
    "quiet": True,
}


def rows(tiny, task, split="train", **options):
    return evaluation.load_view(
        task, split, backbone=tiny, max_length=32, **options
    )


def test_held_out_rows_are_a_fixed_fifth_in_the_labels_proportions(tiny):
    whole = rows(tiny, "toy_topic")
    spec = specs.get("toy_topic")
    kept, held = loading.held_out(spec, whole)
    assert (kept.questions, held.questions) == (1600, 400)
    np.testing.assert_array_equal(np.bincount(held.labels), [100] * 4)
    both = {bytes(x[x > 0]) for x in kept.tokens} & {
        bytes(x[x > 0]) for x in held.tokens
    }
    assert not both
    again = loading.held_out(spec, whole)
    assert again[1].fingerprint == held.fingerprint


def test_groups_stay_whole(tiny):
    import dataclasses

    whole = rows(tiny, "toy_topic").subset(range(40))
    references = [{"label": 0, "paragraph": str(i // 4)} for i in range(40)]
    grouped = dataclasses.replace(
        whole, references=json.dumps(references).encode()
    )
    spec = dataclasses.replace(specs.get("toy_topic"), group="paragraph")
    kept, held = loading.held_out(spec, grouped)
    sides = [
        {reference["paragraph"] for reference in part.parsed_references}
        for part in (kept, held)
    ]
    assert held.questions == 8
    assert not sides[0] & sides[1]


def test_one_row_makes_no_two_parts(tiny):
    with pytest.raises(pj.UserError, match="do not make two parts"):
        loading.held_out(
            specs.get("toy_topic"), rows(tiny, "toy_topic").subset([0])
        )


@pytest.fixture(scope="module")
def held_out(tiny, tmp_path_factory):
    return pj.train(
        tiny,
        task="toy_sentiment",
        select_on="held_out",
        model_dir=tmp_path_factory.mktemp("held") / "run",
        **SMALL,
    )


def test_what_is_reported_was_not_chosen_on(tiny, held_out):
    result = held_out.result
    assert result["selected_on"] == "held_out"
    assert result["split"] == "validation"
    assert result["looks"] == 3
    assert result["selection"]["examples"] == 12
    options = {"backbone": tiny, "eval_examples": 32}
    found = pj.evaluate(held_out.folder, **options)
    assert found["scores"] == result["best"]["scores"]
    # The rows that chose: the score that was the highest of three.
    spec = specs.get("toy_sentiment")
    whole = rows(tiny, "toy_sentiment", limit=60)
    kept, held = loading.held_out(spec, whole)
    scores = evaluation.scores(tiny, held_out.prompt.prompt, held, spec=spec)
    assert scores == pytest.approx(result["selection"]["scores"])
    assert result["data_fingerprint"] == kept.fingerprint
    lines = [
        json.loads(line)
        for line in (held_out.folder / "metrics.jsonl").read_text().splitlines()
    ]
    chosen = [
        x["selection_accuracy"] for x in lines if "selection_accuracy" in x
    ]
    assert len(chosen) == 3
    assert max(chosen) == result["selection"]["value"]


def test_validation_chooses_as_ever_and_says_how_often(tiny):
    result = pj.train(tiny, task="toy_sentiment", **SMALL).result
    assert result["selected_on"] == "validation"
    assert result["looks"] == 3
    assert result["selection"] is None


def test_a_test_split_is_reported_and_chooses_nothing(tiny, tmp_path):
    done = pj.train(
        tiny,
        task="toy_sentiment",
        split="test",
        model_dir=tmp_path / "run",
        **SMALL,
    )
    found = pj.evaluate(
        tmp_path / "run", split="test", backbone=tiny, eval_examples=32
    )
    assert done.result["split"] == "test"
    assert done.result["best"]["scores"] == found["scores"]
    chosen = pj.train(tiny, task="toy_sentiment", **SMALL).result
    # The same prompt: validation rows chose it in both.
    assert done.result["best"]["step"] == chosen["best"]["step"]
    assert done.result["selection"]["value"] == chosen["best"]["value"]


def test_patience_ends_with_a_reported_score(tiny, tmp_path):
    """At the last look, which is no new best, what is reported is scored."""
    settings = {**SMALL, "epochs": 12, "patience": 1, "learning_rate": 1e-9}
    done = pj.train(
        tiny,
        task="toy_sentiment",
        select_on="held_out",
        model_dir=tmp_path / "run",
        **settings,
    ).result
    assert done["looks"] == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    looks = [x for x in map(json.loads, lines) if "selection_accuracy" in x]
    assert [x["step"] for x in looks] == [6, 12]
    assert [x["eval_accuracy"] for x in looks] == [
        done["first_epoch"]["value"],
        done["final"]["value"],
    ]


def test_a_task_without_test_answers_says_what_to_do(tiny, tmp_path):
    with pytest.raises(pj.UserError, match="no test split with answers"):
        rows(tiny, "rte", "test", data_dir=tmp_path)


def test_a_fleet_chooses_each_lane_s_own(tiny):
    lanes = {
        f"s{seed}": {
            "task": "toy_sentiment",
            "seed": seed,
            "select_on": "held_out",
            **{n: x for n, x in SMALL.items() if n != "quiet"},
        }
        for seed in (0, 1)
    }
    together = pj.train_fleet(tiny, lanes, quiet=True)
    for name, settings in lanes.items():
        alone = pj.train(tiny, **settings, quiet=True).result
        for part in ("best", "selection", "looks", "final"):
            assert together[name].result[part] == alone[part], (name, part)
