"""Answers to new rows are those that the evaluation judges."""

import csv
import dataclasses
import io
import json
import sys

import made_up_data
import numpy as np
import pytest
import small_t5
from command_line import mistake
from panda_jax.tasks import sources, specs, views

import panda_jax as pj
from panda_jax import cli
from panda_jax.data import task_metrics
from panda_jax.errors import UserError
from panda_jax.prompts import Prompt
from panda_jax.store.prompt_folders import PromptInfo, StoredPrompt, save_prompt
from panda_jax.training import predictions

# One of every kind, with candidates as fields and as a list, questions of
# several rows, a predicate, and windows.
TASKS = (
    "cb", "stsb", "copa", "record", "multirc", "conll04", "conll05",
    "squad",
)  # fmt: skip
ANSWERS = ("label", "answers", "starts", "tags")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_t5.shared(tmp_path_factory)


def stored(backbone, task, *, deep=True):
    """A random prompt, and for encoders a random head."""
    c, rng = backbone.config, np.random.default_rng(0)
    vectors = backbone.empty_vectors
    shape = (c.layers, 2, 3, c.heads, c.head_dim) if deep else (3, c.width)
    vectors = rng.normal(size=shape).astype(np.float32)
    head = {}
    if deep:
        outputs = specs.get(task).outputs
        kernel = rng.normal(size=(c.width, outputs)).astype(np.float32)
        head = {"kernel": kernel, "bias": np.zeros(outputs, np.float32)}
    info = PromptInfo(
        task=task,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        kind="deep" if deep else "shallow",
        method="prompt",
        max_length=32,
    )
    return StoredPrompt(Prompt(vectors, head), info)


def rows_of(task, data):
    """Checked rows of the development split, and they without answers."""
    spec = specs.get(task)
    rows = sources.find(spec, data_dir=data).rows("validation")
    bare = [{k: v for k, v in r.items() if k not in ANSWERS} for r in rows]
    return rows, bare


def judged(task, rows, found):
    """The task's metrics of predictions, which name classes."""
    spec = specs.get(task)
    targets = [views.target(spec, views.reference(spec, r)) for r in rows]
    said = [each["prediction"] for each in found]
    if spec.labels and spec.kind != "tags":
        said = [spec.labels.index(name) for name in said]
    return {
        name: task_metrics.compute(
            name, targets, said, classes=len(spec.labels)
        )
        for name in spec.metrics
    }


@pytest.mark.parametrize("task", TASKS)
def test_they_are_what_evaluation_judges(tiny, data, task):
    prompt = stored(tiny, task)
    rows, bare = rows_of(task, data)
    found = pj.predict(prompt, bare, backbone=tiny)
    assert len(found) == len(rows)
    expected = pj.evaluate(prompt, backbone=tiny, data_dir=data)["scores"]
    assert judged(task, rows, found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("task", ["cb", "stsb", "conll04"])
def test_of_a_text_to_text_model_too(small, data, task):
    prompt = stored(small, task, deep=False)
    rows, bare = rows_of(task, data)
    found = pj.predict(prompt, bare, backbone=small)
    expected = pj.evaluate(prompt, backbone=small, data_dir=data)["scores"]
    assert judged(task, rows, found) == pytest.approx(expected, abs=1e-6)


def test_one_row_s_answer_does_not_depend_on_the_others(tiny, data):
    prompt = stored(tiny, "cb")
    _, bare = rows_of("cb", data)
    together = pj.predict(prompt, bare, backbone=tiny)
    for row, expected in zip(bare[:3], together, strict=False):
        (alone,) = pj.predict(prompt, [row], backbone=tiny)
        assert alone["prediction"] == expected["prediction"]
        shares = alone["probabilities"]
        assert shares == pytest.approx(expected["probabilities"], abs=1e-4)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert max(shares, key=shares.get) == alone["prediction"]


def test_the_verb_writes_a_line_a_line(tiny, tmp_path, capsys):
    prompt = stored(tiny, "toy_review")
    save_prompt(tmp_path / "prompt", prompt.prompt, prompt.info)
    rows, bare = rows_of("toy_review", None)
    given = tmp_path / "new rows.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in bare[:5]))
    code = cli.main(
        [
            "predict",
            f"--prompt={tmp_path / 'prompt'}",
            f"--input={given}",
            f"--out_dir={tmp_path / 'out'}",
        ]
    )
    assert code == 0
    path = tmp_path / "out" / "predictions.jsonl"
    assert capsys.readouterr().out.strip() == str(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == pj.predict(prompt, bare[:5], backbone=tiny)
    # A label in the file, right or wrong, changes nothing.
    labelled = [{**row, "label": "no such class"} for row in bare[:5]]
    assert lines == pj.predict(prompt, labelled, backbone=tiny)


@pytest.fixture(scope="module")
def entailment(tiny, tmp_path_factory):
    """The folder of a prompt for CB."""
    prompt = stored(tiny, "cb")
    folder = tmp_path_factory.mktemp("stored") / "prompt"
    save_prompt(folder, prompt.prompt, prompt.info)
    return folder


def test_every_form_that_it_can_write(
    entailment, data, tmp_path, capsys, monkeypatch
):
    """On the official file: the same answers, known by the same ids."""
    given = data / "super_glue/CB/val.jsonl"
    asked = ["predict", f"--prompt={entailment}"]
    monkeypatch.chdir(tmp_path)

    def said(*flags):
        capsys.readouterr()
        assert cli.main([*asked, *flags]) == 0, capsys.readouterr().err
        return capsys.readouterr()

    lines = said(f"--input={given}", "--output=-").out.splitlines()
    found = [json.loads(line) for line in lines]
    assert [each["idx"] for each in found] == [0, 1, 2]
    assert not list(tmp_path.iterdir())

    feed = io.TextIOWrapper(io.BytesIO(given.read_bytes()))
    monkeypatch.setattr(sys, "stdin", feed)
    told = said("--input=-", "--output=-", "--keep_fields")
    assert "stdin is read as JSON lines." in told.err
    rows = [json.loads(line) for line in given.read_text().splitlines()]
    assert [json.loads(line) for line in told.out.splitlines()] == [
        {**row, **each} for row, each in zip(rows, found, strict=True)
    ]

    assert said(f"--input={given}", "--output=a.csv").out == "a.csv\n"
    with open("a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] for row in table] == [
        each["prediction"] for each in found
    ]
    assert list(table[0]) == ["idx", "prediction"] + [
        f"probabilities.{name}" for name in specs.get("cb").labels
    ]

    path = said(f"--input={given}", "--format=submission", "--out_dir=s").out
    assert path == "s/CB.jsonl\n"
    lines = (tmp_path / "s/CB.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"idx": each["idx"], "label": each["prediction"]} for each in found
    ]
    # What it wrote it replaces; what the user wrote it does not.
    said(f"--input={given}", "--output=a.csv", "--format=csv")
    (tmp_path / "mine.jsonl").write_text("1")
    assert "mine.jsonl" in mistake(
        capsys, *asked, f"--input={given}", "--output=mine.jsonl"
    )
    assert (tmp_path / "mine.jsonl").read_text() == "1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output=a", "--out_dir=b"], "output is 'a' and out_dir 'b'"),
        (["--output=."], "output is the folder '.', expected a file"),
        (["--format=submission", "--keep_fields"], "--keep_fields has no use"),
        (["--format=submission", "--task=conll04"], "no form of a submission"),
        (["--format=xml"], "format 'xml'"),
        ([], "The input 'none.jsonl' is no file"),
    ],
)
def test_mistakes_in_its_flags(
    entailment, flags, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    asked = ["predict", f"--prompt={entailment}", "--input=none.jsonl"]
    assert words in mistake(capsys, *asked, *flags)
    assert not list(tmp_path.iterdir())


def test_tags_and_parts_in_a_table():
    found = [
        {"id": "a,b", "prediction": ["B-X", "O"], "list": [1, "é"]},
        {"id": "c", "prediction": ["O"], "deep": {"x": {"y": "1\n2"}}},
    ]
    table = predictions.written(found, "csv")
    assert list(csv.DictReader(io.StringIO(table, newline=""))) == [
        {
            "id": "a,b",
            "prediction": "B-X O",
            "list": '[1, "é"]',
            "deep.x.y": "",
        },
        {"id": "c", "prediction": "O", "list": "", "deep.x.y": "1\n2"},
    ]
    with pytest.raises(UserError, match="expected jsonl or csv or submission"):
        predictions.written(found, "xml")


def test_a_field_called_as_the_answer_is_not_lost(tiny):
    row = {"premise": "a", "hypothesis": "b", "row": 7, "prediction": "x"}
    with pytest.raises(UserError, match="a field 'prediction'"):
        pj.predict(stored(tiny, "cb"), [row], backbone=tiny, keep_fields=True)
    del row["prediction"]
    (found,) = pj.predict(
        stored(tiny, "cb"), [row], backbone=tiny, keep_fields=True
    )
    assert {k: found[k] for k in row} == row


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("{\n", "line 1"),
        ('{"sentence": "good"}\n[1]\n', "line 2.*a JSON object"),
        ('{"words": "good"}\n', "line 1, field 'sentence': got 'nothing'"),
        (
            '{"sentence": 3}\n',
            "line 1, field 'sentence': got 3, expected a text",
        ),
    ],
)
def test_mistakes_name_the_line(tiny, tmp_path, text, message):
    given = tmp_path / "rows.jsonl"
    given.write_text(text)
    with pytest.raises(UserError, match=message):
        pj.predict(stored(tiny, "toy_review"), given, backbone=tiny)


def test_other_mistakes(tiny, tmp_path):
    prompt = stored(tiny, "toy_review")
    with pytest.raises(UserError, match="is no file"):
        pj.predict(prompt, tmp_path / "none.jsonl", backbone=tiny)
    with pytest.raises(UserError, match="There is no row"):
        pj.predict(prompt, [], backbone=tiny)
    with pytest.raises(UserError, match="head of 2 outputs"):
        pj.predict(prompt, [{}], task="stsb", backbone=tiny)


def test_a_prompt_of_0_1_that_allows_more_than_fits(tiny):
    """Its rows were short; one long row must not end a `predict`."""
    prompt = stored(tiny, "cb")
    prompt = dataclasses.replace(
        prompt, info=dataclasses.replace(prompt.info, max_length=512)
    )
    row = {"premise": "word " * 900, "hypothesis": "It is."}
    (answer,) = pj.predict(prompt, [row], backbone=tiny)
    assert answer["prediction"] in specs.get("cb").labels
    with pytest.raises(UserError, match="--max_length=509 fits"):
        pj.predict(prompt, [row], backbone=tiny, max_length=512)


def test_a_context_may_begin_with_a_blank(tiny):
    row = {"question": "Who sang?", "context": "  Noor sang."}
    found = pj.predict(stored(tiny, "squad"), [row], backbone=tiny)
    assert found[0]["prediction"] in row["context"]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_given_is_not_spoken_of(tiny, task):
    with pytest.raises(UserError) as told:
        pj.predict(stored(tiny, task), [{"nothing": 1}], backbone=tiny)
    for name in (*ANSWERS, "group", "question_id"):
        assert repr(name) not in str(told.value)
    assert "it has: nothing" in str(told.value)
