"""What the verb `tasks` shows."""

import json
import pathlib

import made_up_data
import pytest
from panda_jax.tasks import specs

from panda_jax.data import catalogue
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer.builtin()
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


def describe(task, made_up):
    return catalogue.describe(task, tokenizer=TOKENIZER, data_dir=made_up)


def test_the_list_marks_sources_targets_and_builtin_ones():
    table = {task["name"]: task for task in catalogue.list_tasks()}
    assert table["cb"]["target"]
    assert table["cb"]["metric"] == "accuracy"
    assert table["squad"]["source"]
    assert not table["squad"]["target"]
    assert table["toy_topic"]["offline"]
    assert table["toy_topic"]["outputs"] == 4
    assert sum(task["source"] for task in table.values()) == 21
    assert sum(task["target"] for task in table.values()) == 9


def test_counts_labels_and_examples_are_shown(made_up):
    about = describe("cb", made_up)
    assert about["splits"] == {
        "train": {
            "examples": 5,
            "labels": {"entailment": 2, "contradiction": 2, "neutral": 1},
            "published": 250,
        },
        "validation": {
            "examples": 3,
            "labels": {"entailment": 1, "contradiction": 1, "neutral": 1},
            "published": 56,
        },
    }
    assert about["examples"][0] == {
        "encoder": [
            "[CLS] the cat sleeps on the mat. [SEP] a cat is asleep. [SEP]"
        ],
        "input": "cb hypothesis: A cat is asleep. premise: The cat sleeps on "
        "the mat.",
        "target": "entailment",
        "answer": "entailment",
    }
    assert len(about["examples"]) == 3
    assert str(made_up) in about["source"]
    assert about["features"]["labels"] == "[] int32"


def test_every_kind_is_summarised(made_up):
    train = {
        name: describe(name, made_up)["splits"]["train"]
        for name in ("stsb", "multirc", "copa", "conll04", "squad", "record")
    }
    assert train["stsb"] == {
        "examples": 5,
        "scores": [0.0, 2.5, 5.0],
        "published": 5749,
    }
    assert train["multirc"]["questions"] == 2
    assert train["multirc"]["passages"] == 1
    assert sum(train["multirc"]["labels"].values()) == 5
    assert sum(train["copa"]["labels"].values()) == 5
    rows = json.loads(
        (made_up / "conll04/conll04_train.json").read_text("utf-8")
    )
    kinds = [entity["type"] for row in rows for entity in row["entities"]]
    assert train["conll04"]["labels"] == {
        kind: kinds.count(kind)
        for kind in specs.get("conll04").labels
        if kind in kinds
    }
    assert train["conll04"]["words"] == sum(len(row["tokens"]) for row in rows)
    assert train["squad"]["answers"] == 5
    assert train["record"]["answers"] > 5  # some have two


def test_nothing_is_downloaded(tmp_path):
    about = catalogue.describe(
        "cb", tokenizer=TOKENIZER, tfds_data_dir=tmp_path
    )
    assert "--data_dir" in about["unavailable"]
    assert "splits" not in about
    assert "would download" in about["unavailable"]
    about = catalogue.describe(
        "conll05", tokenizer=TOKENIZER, tfds_data_dir=tmp_path
    )
    assert "--data_dir" in about["unavailable"]
    assert "download" not in about["unavailable"]
    page = catalogue.markdown("cb", tokenizer=TOKENIZER, tfds_data_dir=tmp_path)
    assert "Not prepared: TFDS super_glue/cb" in page


def test_the_page_of_all_tasks_is_what_the_command_writes(
    made_up, minilm_folder
):
    if not PAGE.is_file():
        pytest.skip("installed without the checkout")
    page = catalogue.markdown(
        tokenizer=Tokenizer.from_folder(minilm_folder), data_dir=made_up
    )
    assert page == PAGE.read_text(), (
        "make it again: python tests/made_up_data.py DIR && panda-jax tasks "
        "--data_dir=DIR --markdown=docs/tasks.md"
    )
    for name in specs.names():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert "\ninput    " in section
        assert "\ntarget   " in section


def test_text_is_decoded_from_the_vocabulary_given(made_up):
    class Shouting(TextTokenizer):
        def decode(self, ids):
            return super().decode(ids).upper()

    about = catalogue.describe(
        "cola",
        tokenizer=TOKENIZER,
        text_tokenizer=Shouting(None, b""),
        data_dir=made_up,
    )
    assert about["examples"][0]["target"] == "ACCEPTABLE"
