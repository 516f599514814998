"""Submissions have the layout, the ids and the order of the official files."""

import json
import re

import made_up_data
import pytest
from panda_jax.tasks import readers, specs, submissions, unanswered

from panda_jax.errors import UserError

JSON_TASKS = ("cb", "copa", "wsc", "wic", "rte", "boolq", "record")
# What the benchmark's own tools write: names, texts and numbers.
LABELS = {
    "cb": {"entailment", "contradiction", "neutral"},
    "rte": {"entailment", "not_entailment"},
    "copa": {0, 1},
    "wsc": {"False", "True"},
    "wic": {"false", "true"},
    "boolq": {"false", "true"},
    "record": {"Ida Berg", "Oslo", "Noor", "Ida"},
}
CODES = {
    "cola": {"0", "1"},
    "sst2": {"0", "1"},
    "mrpc": {"0", "1"},
    "qqp": {"0", "1"},
    "mnli": {"entailment", "neutral", "contradiction"},
    "qnli": {"entailment", "not_entailment"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


def lines_of(task, data):
    """The objects of the development file."""
    (path,) = readers.paths(specs.get(task), "validation", str(data))
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(task, data):
    """Answers of every kind that the task has, one a row, as `predict`'s."""
    spec = specs.get(task)
    (path,) = readers.paths(spec, "validation", str(data))
    found = unanswered.read(spec, path)
    answers = []
    for number, each in enumerate(found):
        said = spec.labels[number % len(spec.labels)] if spec.labels else "x"
        if spec.listed_choices:
            said = each.row[spec.choices[0]][number]
        answers.append({**each.key, "prediction": said})
    return answers


@pytest.mark.parametrize("task", JSON_TASKS)
def test_super_glue_s(task, data):
    text = submissions.text(task, answered(task, data))
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    values = lines_of(task, data)
    if task == "record":
        values = [query for value in values for query in value["qas"]]
    assert [each["idx"] for each in found] == [each["idx"] for each in values]
    for each in found:
        assert list(each) == ["idx", "label"]
        assert type(each["idx"]) is int
        assert each["label"] in LABELS[task]
        assert type(each["label"]) is (int if task == "copa" else str)
    assert len({each["label"] for each in found}) > 1
    assert submissions.file_name(task).endswith(".jsonl")


def test_multirc_s_is_nested_as_its_file(data):
    answers = answered("multirc", data)
    text = submissions.text("multirc", answers)
    found = [json.loads(line) for line in text.splitlines()]
    expected = lines_of("multirc", data)
    labels = iter(each["prediction"] == "True" for each in answers)
    for value in expected:
        value["passage"].pop("text")
        for question in value["passage"]["questions"]:
            question.pop("question")
            for answer in question["answers"]:
                answer.pop("text")
                answer["label"] = int(next(labels))
    assert found == expected
    assert [list(value) for value in found] == [["idx", "passage"]]


@pytest.mark.filterwarnings("ignore:.*lack a column")
@pytest.mark.parametrize("task", [*CODES, "stsb"])
def test_glue_s(task, data):
    answers = answered(task, data)
    if task == "stsb":
        for each, score in zip(answers, (-0.25, 3.14159, 7.0), strict=True):
            each["prediction"] = score
    header, *lines = submissions.text(task, answers).splitlines()
    assert header == "index\tprediction"
    found = [line.split("\t") for line in lines]
    assert [key for key, _ in found] == ["0", "1", "2"]
    if task == "stsb":
        assert [said for _, said in found] == ["0.000", "3.142", "5.000"]
    else:
        assert {said for _, said in found} <= CODES[task]
        codes = specs.get(task).label_values or {}
        for (_, said), each in zip(found, answers, strict=True):
            assert codes.get(said, said) == each["prediction"]


def test_squad_s():
    answers = [
        {"id": "56be", "prediction": 'the "moon"'},
        {"id": "57", "prediction": "Zoë"},
    ]
    text = submissions.text("squad", answers)
    assert json.loads(text) == {"56be": 'the "moon"', "57": "Zoë"}
    assert "Zoë" in text


def test_ids_that_tables_spell_and_datasets_nest():
    found = submissions.text("rte", [{"idx": "7", "prediction": "entailment"}])
    assert json.loads(found) == {"idx": 7, "label": "entailment"}
    index = {"passage": 0, "query": 4}
    found = submissions.text("record", [{"idx": index, "prediction": "Ida"}])
    assert json.loads(found) == {"idx": 4, "label": "Ida"}
    # Where no row has an id, its number is one.
    rows = [{"row": n, "prediction": "True"} for n in range(2)]
    found = submissions.text("wic", rows).splitlines()
    assert [json.loads(line)["idx"] for line in found] == [0, 1]


@pytest.mark.parametrize(
    ("task", "keys", "words"),
    [
        ("conll04", [{"row": 0}], "'conll04' has no form of a submission.*wsc"),
        ("toy_review", [{"row": 0}], "has no form of a submission"),
        ("nothing", [{"row": 0}], "Unknown task 'nothing'"),
        ("cb", [{"idx": "a"}], "'idx'.*row 1 has 'a'"),
        ("cb", [{"idx": 0}, {"row": 1}], "'idx'.*row 2 has None"),
        ("cb", [{"idx": 3}, {"idx": 3}], "rows 1 and 2 have 3"),
        ("cb", [{"id": "a"}], "'idx'.*row 1 has None"),
        ("multirc", [{"row": 0}], "'idx.paragraph'.*row 1 has None"),
        (
            "multirc",
            [{"idx": {"paragraph": 1, "question": 2, "answer": 3}}] * 2,
            r"rows 1 and 2 have \(1, 2, 3\)",
        ),
        ("mrpc", [{"index": "0"}, {"index": "0"}], "rows 1 and 2 have 0"),
        ("squad", [{"row": 0}], "needs the field 'id'.*row 1 has none"),
        ("squad", [{"id": "a"}] * 2, "rows 1 and 2 have 'a'"),
    ],
)
def test_what_no_server_would_take(task, keys, words):
    answers = [{**key, "prediction": "neutral"} for key in keys]
    if task == "multirc":
        answers = [{**key, "prediction": "True"} for key in keys]
    with pytest.raises(UserError) as told:
        submissions.text(task, answers)
    assert re.search(words, str(told.value)), told.value
