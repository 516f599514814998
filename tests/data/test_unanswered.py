"""Rows to be answered: every layout says the same rows, and what they are."""

import copy
import io
import json
import pathlib
import re
import sys
import types

import made_up_data
import pyarrow
import pytest
from panda_jax.tasks import (
    own,
    readers,
    readers_flat,
    specs,
    tables,
    unanswered,
)
from panda_jax.tasks.rows import row_fields
from pyarrow import parquet

from panda_jax.errors import UserError

TASKS = [name for name in specs.names() if specs.get(name).files]
ANSWERS = ("label", "answers", "starts", "tags")
FLAT = ("cb", "copa", "wsc", "stsb", "record", "multirc", "squad", "conll05")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("data"))


def files(task, data):
    """What a user names to have a task's development rows answered."""
    found = readers.paths(specs.get(task), "validation", str(data))
    if task == "conll05":
        return ",".join(map(str, found))
    assert len(set(found)) == 1 or task in ("conll12", "ontonotes")
    return str(found[0])


def asked(spec, rows):
    """Rows without what is answered."""
    fields = row_fields(spec, answered=False)
    return [{f: row[f] for f in fields if f in row} for row in rows]


def of(spec, given, **options):
    return asked(spec, [x.row for x in unanswered.read(spec, given, **options)])


def plain_rows(task, data):
    """Rows by the task's own names: what `panda-jax tasks` shows."""
    spec = specs.get(task)
    rows = readers.read(spec, "validation", str(data))
    if spec.pointed:  # whose text has its marks already
        rows = [
            {**row, "text": row["text"].replace("*", ""), "span2_index": None}
            for row in rows
        ]
        for row, (text, _, _, at) in zip(
            rows, made_up_data.PRONOUNS, strict=False
        ):
            row |= {"text": text, "span2_index": at}
    kept = row_fields(spec, answered=False)
    return [{f: row[f] for f in kept} for row in rows]


@pytest.mark.filterwarnings("ignore:.*lack a column")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_s_own_files(task, data):
    """Labels are not looked at, and what is asked is what is scored."""
    spec = specs.get(task)
    rows = readers.read(spec, "validation", str(data))
    found = of(spec, files(task, data))
    if task in ("conll12", "ontonotes"):  # of which there are several files
        assert found
        assert all(row in asked(spec, rows) for row in found)
        return
    assert found == asked(spec, rows)


def without_answers(task, data, folder):
    """The development file as the authors would ship it without answers."""
    path = files(task, data)
    text = pathlib.Path(path.split(",")[-1]).read_text()
    new = folder / "test.file"
    if task == "squad":
        value = json.loads(text)
        for paragraph in value["data"][0]["paragraphs"]:
            for question in paragraph["qas"]:
                del question["answers"]
        new = new.with_suffix(".json")
        new.write_text(json.dumps(value, indent=1))
    elif task == "conll05":
        marks = (" ".join(line.split()[:1]) for line in text.split("\n"))
        new.write_text("\n".join(marks))
        return f"{path.split(',')[0]},{new}"
    elif task == "conll03":
        lines = text.split("\n")
        new.write_text("\n".join(line.rpartition(" ")[0] for line in lines))
    elif task == "conll04":
        rows = [{"tokens": x["tokens"]} for x in json.loads(text)]
        new = new.with_suffix(".json")
        new.write_text(json.dumps(rows))
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        for value in lines:
            value.pop("label", None)
            for query in value.get("qas", ()):
                del query["answers"]
            if task == "multirc":
                for question in value["passage"]["questions"]:
                    for answer in question["answers"]:
                        del answer["label"]
        new = new.with_suffix(".jsonl")
        new.write_text("".join(f"{json.dumps(value)}\n" for value in lines))
    return str(new)


@pytest.mark.parametrize(
    "task",
    [
        *("cb", "copa", "rte", "wic", "wsc", "boolq", "multirc", "record"),
        *("squad", "conll03", "conll04", "conll05"),
    ],
)
def test_files_without_answers(task, data, tmp_path):
    spec = specs.get(task)
    expected = of(spec, files(task, data))
    assert of(spec, without_answers(task, data, tmp_path)) == expected


# The headers of GLUE's own test files, and a row.
GLUE_TESTS = {
    "cola": ("index\tsentence", '0\tA "b".', {"sentence": 'A "b".'}),
    "sst2": ("index\tsentence", "0\ta b", {"sentence": "a b"}),
    "mrpc": (
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "0\t1\t2\ta\tb",
        {"sentence1": "a", "sentence2": "b"},
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1"
        "\tsentence2",
        "0\tg\tf\t2\t3\tx\ty\ta\tb",
        {"sentence1": "a", "sentence2": "b"},
    ),
    "qqp": (
        "id\tquestion1\tquestion2",
        "0\ta?\tb?",
        {"question1": "a?", "question2": "b?"},
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2",
        "0\t1\t1a\tg\ta\tb",
        {"premise": "a", "hypothesis": "b"},
    ),
    "qnli": (
        "index\tquestion\tsentence",
        "0\ta?\tb",
        {"question": "a?", "sentence": "b"},
    ),
}


@pytest.mark.parametrize("task", GLUE_TESTS)
def test_glue_s_test_files(task, tmp_path):
    header, line, expected = GLUE_TESTS[task]
    path = tmp_path / "test.tsv"
    path.write_bytes(f"\ufeff{header}\r\n{line}\r\n".encode())
    (found,) = unanswered.read(specs.get(task), path)
    assert asked(specs.get(task), [found.row]) == [expected]
    assert found.key == {header.split("\t")[0]: "0"}


def test_cola_as_it_is_shipped_has_no_header_and_no_ids(data):
    found = unanswered.read(specs.get("cola"), files("cola", data))
    assert [x.key for x in found] == [{"row": n} for n in range(3)]


def test_a_torn_line_of_a_published_file_is_left_out_and_told(data):
    """As in training; the other rows keep their ids."""
    with pytest.warns(RuntimeWarning, match="2 lines lack a column"):
        found = unanswered.read(specs.get("qqp"), files("qqp", data))
    assert [x.key for x in found] == [{"id": f"{n}"} for n in range(3)]


def test_ids_are_carried(data):
    def keys(task):
        found = unanswered.read(specs.get(task), files(task, data))
        return [x.key for x in found]

    assert keys("cb") == [{"idx": n} for n in range(3)]
    places = [(10, 0), (10, 1), (11, 0)]
    assert keys("multirc") == [
        {"idx": {"paragraph": 3, "question": question, "answer": answer}}
        for question, answer in places
    ]
    assert keys("record") == [{"idx": n} for n in range(3)]
    assert keys("squad") == [{"id": f"{n}"} for n in range(3)]
    assert keys("stsb") == [{"index": f"{n}"} for n in range(3)]
    assert keys("conll03") == [{"row": n} for n in range(3)]


def write_table(path, rows):
    """The rows in a format, lists and objects spelled where it has none."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        cells = [
            [
                " ".join(value)
                if name == "words"
                else json.dumps(value)
                if isinstance(value, list)
                else str(value)
                for name, value in row.items()
            ]
            for row in rows
        ]
        table = [list(rows[0]), *cells]
        if path.suffix == ".csv":
            import csv

            with open(path, "w", newline="") as file:
                csv.writer(file).writerows(table)
        else:
            path.write_text("".join("\t".join(x) + "\n" for x in table))
    return path


@pytest.mark.parametrize("ending", tables.FORMATS)
@pytest.mark.parametrize("task", FLAT)
def test_tables_with_the_task_s_names(task, ending, data, tmp_path):
    rows = plain_rows(task, data)
    breaks = any("\n" in str(v) for row in rows for v in row.values())
    if ending == "conll" or (ending == "tsv" and breaks):
        pytest.skip("it has no such rows")
    path = write_table(tmp_path / f"t.{ending}", rows)
    spec = specs.get(task)
    assert of(spec, path) == of(spec, rows) == of(spec, files(task, data))


def feed(monkeypatch, data):
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii")
    )


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_stdin_is_sniffed_and_said(ending, data, tmp_path, monkeypatch):
    path = write_table(tmp_path / f"t.{ending}", plain_rows("cb", data))
    spec, told = specs.get("cb"), []
    for options in ({}, {"format": ending}):
        feed(monkeypatch, path.read_bytes())
        assert of(spec, "-", tell=told.append, **options) == of(spec, path)
    assert told == [f"stdin is read as {tables.FORMATS[ending]}."]


@pytest.mark.parametrize("task", ["multirc", "record", "squad", "conll03"])
def test_official_layouts_on_stdin(task, data, monkeypatch):
    spec = specs.get(task)
    with open(files(task, data), "rb") as file:
        feed(monkeypatch, file.read())
    assert of(spec, "-") == of(spec, files(task, data))


def test_stdin_that_is_not_there_or_not_utf_8(monkeypatch):
    spec = specs.get("cb")
    feed(monkeypatch, b'{"premise": "a", "hypothesis": "\xff"}\n')
    with pytest.raises(UserError, match="stdin, line 1.*UTF-8"):
        unanswered.read(spec, "-")
    feed(monkeypatch, b"\n")
    with pytest.raises(UserError, match="stdin has no rows"):
        unanswered.read(spec, "-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="stdin cannot be read"):
        unanswered.read(spec, "-")


def test_other_names_for_the_fields(tmp_path):
    spec = specs.get("cb")
    expected = [{"premise": "a", "hypothesis": "b"}]
    rows = [{"x": "a", "deep": {"y": "b"}, "premise": "no"}]
    assert of(spec, rows, text="x,deep.y") == expected
    path = tmp_path / "t.tsv"
    path.write_text("b\tz\ta\n")
    assert of(spec, path, text="2,0") == expected
    for text, words in (
        ("x", r"asks for 2 fields: premise, hypothesis"),
        # Not taken from the field that would have been read without.
        ("none,deep.y", r"row 1, field 'none'.*it has: x, deep, premise"),
    ):
        with pytest.raises(UserError, match=words):
            of(spec, rows, text=text)


@pytest.fixture
def reviews():
    rows = [{"id": n, "the text": f"t {n}", "y": "ab"[n % 2]} for n in range(9)]
    return own.add({"train": rows}, text="the text", label="y", name="notes")


def test_own_tasks_read_tables_with_their_own_names(reviews, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,the text,more\nq7,"a\nb",1\n')
    (found,) = unanswered.read(reviews, path)
    assert found.row["the text"] == "a\nb"
    assert found.key == {"id": "q7"}
    assert found.fields == {"id": "q7", "the text": "a\nb", "more": "1"}
    with pytest.raises(UserError) as told:
        unanswered.read(reviews, [{"the text": " "}])
    assert "the rows, row 1, field 'the text'" in str(told.value)
    assert of(reviews, [{"body": "c"}], text="body") == [{"the text": "c"}]


def test_a_field_that_is_read_is_no_id():
    rows = [{"id": f"text {n}", "y": "ab"[n % 2]} for n in range(9)]
    spec = own.add({"train": rows}, text="id", label="y", name="texts")
    (found,) = unanswered.read(spec, [{"id": "new"}])
    assert found.key == {"row": 0}


def test_pandas_own_index_is_a_column(reviews, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",the text\n4,a\n")
    (found,) = unanswered.read(reviews, path)
    assert found.key == {"index": "4"}


def test_bio_files_of_one_s_own(tmp_path):
    train, new = tmp_path / "train.conll", tmp_path / "new.conll"
    train.write_text("Ida B-PER\nmet O\n\nPer B-PER\nran O\n\nOle B-PER\n")
    new.write_text("-DOCSTART-\n\nNoor\nsang\n\nIda\n")
    spec = own.add({"train": train}, text="0", label="1", name="bio")
    assert (spec.kind, spec.labels) == ("tags", ("PER",))
    assert of(spec, new) == [{"words": ["Noor", "sang"]}, {"words": ["Ida"]}]


class Table(list):
    """As `datasets` has rows: classes by number, and their names beside."""

    def __init__(self, rows, features):
        super().__init__(rows)
        self.features = features


def test_classes_of_a_datasets_table_are_their_names(tmp_path):
    names = types.SimpleNamespace(names=["no", "yes"])
    tags = types.SimpleNamespace(
        feature=types.SimpleNamespace(names=["O", "B-X"])
    )
    rows = [{"y": 1, "t": (0, 1)}, {"y": 0, "t": [1]}, {"y": -1, "t": []}]
    found = tables.in_memory(Table(rows, {"y": names, "t": tags}), "the rows")
    assert [row for _, row in found] == [
        {"y": "yes", "t": ["O", "B-X"]},
        {"y": "no", "t": ["B-X"]},
        {"y": -1, "t": []},
    ]


def test_what_pandas_lacks_is_not_the_text_nan():
    rows = [{"t": f"a {n}", "y": n % 2} for n in range(8)]
    rows.append({"t": float("nan"), "y": 1})
    with pytest.raises(UserError, match="row 9, field 't': got None"):
        own.add({"train": rows}, text="t", label="y", name="gaps")


# Task, the file's name and text, what the message says.
BROKEN = {
    "no field": ("wsc", "a.jsonl", '{"text": "x"}', "line 1.*'target.span2_te"),
    "an official field": (
        "wsc",
        "a.jsonl",
        '{"text": "a b", "target": {"span1_text": " ", "span2_text": "b"}}',
        r"line 1, field 'target.span1_text': got ' '",
    ),
    "a column's own name": (
        "mrpc",
        "a.tsv",
        "index\t#1 String\t#2 String\n0\ta\t \n",
        r"line 2, field '#2 String': got ' '",
    ),
    "an unclear pronoun": (
        "wsc",
        "a.jsonl",
        '{"text": "it, it", "span1_text": "a", "span2_text": "it"}',
        "field 'span2_index'.*the text holds 2 times",
    ),
    "a word that COPA has not": (
        "copa",
        "a.csv",
        "premise,choice1,choice2,question\na,b,c,why\n",
        "line 2, field 'question': got 'why'",
    ),
    "no list": (
        "record",
        "a.csv",
        "passage,query,entities\na,@placeholder,b\n",
        "line 2, field 'entities': got 'b', expected a list",
    ),
    "MultiRC without a text": (
        "multirc",
        "a.jsonl",
        '{"idx": 0, "passage": {"text": "a", "questions": [{"question": "q",'
        ' "idx": 0, "answers": [{"idx": 1}]}]}}',
        "line 1, field 'text'",
    ),
    "SQuAD without a question": (
        "squad",
        "a.json",
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}',
        "question 1, field 'question'",
    ),
    "an id that is none": (
        "cb",
        "a.jsonl",
        '{"premise": "a", "hypothesis": "b", "idx": [1]}',
        r"line 1, field 'idx': got \[1\], expected a whole number or a text",
    ),
    "half a character in an id": (
        "cb",
        "a.jsonl",
        '{"premise": "a", "hypothesis": "b", "id": "\\ud800"}',
        "line 1, field 'id'",
    ),
    "JSON that is no list": ("cb", "a.json", "3", "line 1.*list of JSON obj"),
    "a list of other things": ("cb", "a.json", "[3]", "row 1.*a JSON object"),
    "broken JSON": ("cb", "a.json", '[{"premise": ', "line 1.*JSON"),
    "no Parquet": ("cb", "a.parquet", "PAR1", "is no Parquet file"),
    "roles for other words": (
        "conll05",
        "a.words,a.props",
        "Ida\nran\n|-\n",
        "line 1.*2, as in a.words",
    ),
    "one file of two": ("conll05", "a.words", "Ida\n", "takes two files"),
    "no file": ("cb", "", "", "is no file"),
    "blank": ("cb", "a.tsv", "\n", "has no rows"),
    "no predicate": (
        "conll05",
        "a.jsonl",
        '{"words": ["a"], "predicate": 1}',
        "line 1, field 'predicate'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_messages_name_file_line_and_field(what, tmp_path, monkeypatch):
    task, name, text, words = BROKEN[what]
    monkeypatch.chdir(tmp_path)
    for each, part in zip(name.split(","), text.split("|"), strict=True):
        if each:
            (tmp_path / each).write_text(part)
    with pytest.raises(UserError) as told:
        unanswered.read(specs.get(task), name or "none.jsonl")
    said = str(told.value)
    assert re.search(words, said), said
    assert name.split(",")[-1] in said or "two files" in said
    for field in (*ANSWERS, "question_id"):
        assert f"field {field!r}" not in said


def test_an_unknown_format_and_no_rows():
    with pytest.raises(UserError, match="Unknown input_format 'xml'"):
        unanswered.read(specs.get("cb"), "a.csv", format="xml")
    with pytest.raises(UserError, match="There is no row"):
        unanswered.read(specs.get("cb"), [])
    value = {"idx": 0, "passage": {"text": "a", "questions": []}}
    with pytest.raises(UserError, match="There is no row"):
        unanswered.read(specs.get("multirc"), [value])


def test_two_files_are_one_too_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"words": ["a"], "predicate": 0}\n')
    with pytest.raises(UserError, match="names 2 files, expected one"):
        unanswered.read(specs.get("conll05"), "a.jsonl,b.jsonl")


def test_what_is_kept_of_a_field_can_be_written():
    import datetime

    value = {
        "a": [float("nan"), "\ud800", datetime.date(2020, 1, 2), (1, None)],
        3: {"b": float("inf")},
    }
    before = copy.copy(value)
    assert unanswered.plain(value) == {
        "a": [None, "?", "2020-01-02", [1, None]],
        "3": {"b": None},
    }
    assert value == before


def test_a_stream_stands_for_a_file():
    stream = readers_flat.Stream(b"a,b\n1,2\n", name="x.csv")
    ((place, row),) = tables.parsed(stream, "csv")
    assert (place.path, place.line, row) == ("x.csv", 2, {"a": "1", "b": "2"})
