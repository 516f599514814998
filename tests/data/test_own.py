"""Rows of the user's own: five files by the command line, and broken ones."""

import json
import re
import types
import typing

import datasets
import numpy as np
import pandas
import pytest
from command_line import mistake
from panda_jax.tasks import (
    encoding,
    own,
    sources,
    specs,
    unanswered,
    views,
)

import panda_jax as pj
from panda_jax import cli
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError

SMALL = [
    "--backbone=random:bert-tiny",
    "--prompt_length=4",
    "--max_length=24",
    "--batch_size=8",
    "--steps=2",
    "--quiet",
]
WORDS = ("good", "bad", "fine", "awful")


def reviews(count=24):
    return [
        {
            "id": n,
            "review": f'He said "{WORDS[n % 4]}",\nand left, {n} times.',
            "verdict": ("yes", "no")[n % 2],
        }
        for n in range(count)
    ]


def as_csv(rows):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    lines = [",".join(map(cell, rows[0]))]
    lines += [",".join(map(cell, row.values())) for row in rows]
    return "\r\n".join(lines) + "\r\n"


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def nested(count=24):
    return [
        {
            "pair": {"a": f"cat {n}", "b": f"dog {n % 3}"},
            "meta": {"gold": ["no", "maybe", "yes"][n % 3]},
        }
        for n in range(count)
    ]


def scores(count=30):
    return [
        {"one": f"a {n}", "two": f"b {n}", "score": n / 7} for n in range(count)
    ]


def tagged(count=20):
    return [
        {
            "tokens": f"Ida met Per {n}".split(),
            "ner": ["B-PER", "O", "B-PER", "O"],
        }
        for n in range(count)
    ]


# Name, its text, flags, kind, labels.
FILES = {
    "quotes.csv": (
        as_csv(reviews()),
        ["--text=review", "--label=verdict"],
        "classification",
        ("no", "yes"),
    ),
    "bare.tsv": (
        "".join(f"{n}\t{n % 3 + 9}\tthe {WORDS[n % 4]}\n" for n in range(24)),
        ["--text=2", "--label=1"],
        "classification",
        ("9", "10", "11"),
    ),
    "nested.jsonl": (
        as_jsonl(nested()),
        ["--text=pair.a,pair.b", "--label=meta.gold"],
        "classification",
        ("maybe", "no", "yes"),
    ),
    "scores.csv": (
        as_csv(scores()),
        ["--text=one,two", "--label=score"],
        "regression",
        (),
    ),
    "names.jsonl": (
        as_jsonl(tagged()),
        ["--text=tokens", "--label=ner"],
        "tags",
        ("PER",),
    ),
    "bio.conll": (
        "\n".join(f"Ida B-PER\nmet O\nPer{n} B-PER\n" for n in range(20)),
        ["--text=0", "--label=1"],
        "tags",
        ("PER",),
    ),
}
COUNTS = {"quotes.csv": 24, "scores.csv": 30, "bio.conll": 20}


@pytest.mark.parametrize("name", FILES)
def test_by_the_command_line_alone(name, tmp_path, capsys, monkeypatch):
    text, flags, kind, labels = FILES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    assert (
        cli.main(
            ["train", f"--train_file={name}", *flags, "--model_dir=run", *SMALL]
        )
        == 0
    ), capsys.readouterr().err
    task = name.partition(".")[0]
    spec = specs.get(task)
    assert (spec.kind, spec.labels) == (kind, labels)
    rows = {
        split: sources.find(spec).rows(split)
        for split in ("train", "validation")
    }
    total = COUNTS.get(name, len(text.strip().splitlines()))
    if name == "quotes.csv":
        assert rows["train"][0]["review"].count("\n") == 1
    assert len(rows["train"]) + len(rows["validation"]) == total
    assert 0.1 < len(rows["validation"]) / total < 0.35
    capsys.readouterr()
    # As in another process, which has no rows: the prompt says what it is.
    own._ROWS.clear()
    specs._SPECS.pop(task)
    assert (
        cli.main(
            ["evaluate", "--prompt=run", f"--test_file={name}", "--split=test"]
        )
        == 0
    ), capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["examples"] == total
    own._ROWS.clear()
    specs._SPECS.pop(task)
    assert (
        cli.main(
            [
                "predict",
                "--prompt=run",
                f"--input={name}",
                "--output=a.jsonl",
            ]
        )
        == 0
    ), capsys.readouterr().err
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == total
    found = json.loads(lines[-1])
    if name == "quotes.csv":
        assert found["id"] == f"{total - 1}"
    else:
        assert found["row"] == total - 1
    if kind == "classification":
        assert found["prediction"] in labels
    elif kind == "tags":
        assert len(found["prediction"]) == (3 if name == "bio.conll" else 4)
    else:
        assert isinstance(found["prediction"], float)


GOOD = 'text,label\n"a b",x\n"c d",y\n'
# Flags, the file's text, what the message says.
BROKEN = {
    "no such file": ("t.csv", None, [], "cannot be read"),
    "an unknown ending": ("t.txt", "a", [], "expected the ending .csv"),
    "nothing in it": ("t.csv", "", [], "no rows"),
    "a header alone": ("t.csv", "text,label\n", [], "no rows"),
    "too few cells": ("t.csv", GOOD + "z\n", [], "line 4.*2 columns, not 1"),
    "too many cells": ("t.csv", GOOD + "a,b,c\n", [], "line 4.*not 3"),
    "a quote left open": ("t.csv", GOOD + '"a,b\nc', [], "line 4.*CSV"),
    "a quote in the wrong place": (
        "t.csv", GOOD + '"a" b,x\n', [], "line 4.*CSV",
    ),
    "a column twice": ("t.csv", "text,text\na,b\n", [], "line 1.*each once"),
    "no such text": ("t.csv", GOOD, ["--text=body"], "line 2.*'body'.*text"),
    "no such label": ("t.csv", GOOD, ["--label=y"], "line 2.*'y'.*text, la"),
    "an empty text": ("t.csv", GOOD + '"",x\n', [], "line 4.*'text'.*empty"),
    "an empty label": ("t.csv", GOOD + "a,\n", [], "line 4.*'label'.*a class"),
    "one class alone": ("t.csv", "text,label\na,x\nb,x\n", [], "'x'.*two cl"),
    "a class that is not given": (
        "t.csv", GOOD, ["--labels=x,z"], "line 3.*'label'.*'x' or 'z'",
    ),
    "no number": (
        "t.csv", GOOD, ["--kind=regression"], "line 2.*'label'.*a number",
    ),
    "not UTF-8": ("t.csv", b"text,label\n\xff,x\n", [], "line 2.*UTF-8"),
    "no JSON": ("t.jsonl", '{"text": \n', [], "line 1.*JSON"),
    "no object": ("t.jsonl", "[1]\n", [], "line 1.*a JSON object"),
    "a text that is none": (
        "t.jsonl",
        '{"text": {"a": 1}, "label": "x"}\n{"text": "b", "label": "y"}\n',
        [],
        "line 1.*'text'.*a text",
    ),
    "tags for other words": (
        "t.jsonl", '{"text": ["a"], "label": ["O", "O"]}\n' * 2, [],
        "line 1.*'label'.*a list of 1",
    ),
    "the name of a task that is there": (
        "t.csv", GOOD, ["--task=cb"], "'cb' is a task that is there already",
    ),
    "fields that are not named": ("t.csv", GOOD, None, "they have: text"),
    "many values": (
        "t.csv",
        "text,label\n" + "".join(f"a{n},w{n}\n" for n in range(30)),
        [],
        "'label' has 30 different values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_end_in_one_message(what, tmp_path, capsys, monkeypatch):
    name, text, flags, words = BROKEN[what]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        text = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(text)
    given = [] if flags is None else ["--text=text", "--label=label", *flags]
    said = mistake(capsys, "train", f"--train_file={name}", *given, *SMALL)
    assert re.search(words, said), said
    if "line" in words:
        assert name in said
    assert not (tmp_path / "runs").exists()


ROWS = [{"t": f"a {n}", "u": ["x", "y"], "y": n % 2} for n in range(4)]
# Rows, how they are named, what the message says.
IN_MEMORY = {
    "no rows at all": (None, {}, "No rows are given"),
    "rows that are none": ([], {}, "the train rows has no rows"),
    "a table of columns": ({"t": ["a"]}, {}, "is of type dict, expected rows"),
    "a row that is none": ([ROWS[0], 3], {}, "row 2, field '.whole row.'"),
    "an unknown kind": (ROWS, {"kind": "span"}, "kind is 'span', expected cl"),
    "tags of two texts": (
        [{"t": ["a"], "u": "b", "y": ["O"]}],
        {"text": "t,u"},
        "Tags are of one text field",
    ),
    "tags that are none": (
        [{"t": ["a"], "y": 3}],
        {},
        "row 1, field 'y': got 3, expected a list of words",
    ),
    "a choice without a text": (
        ROWS,
        {"text": "u", "kind": "choice"},
        "A choice has a text, and one field",
    ),
    "a candidate that is not there": (
        [{"t": "q", "u": ["x", "y"], "y": 2}],
        {"text": "t,u"},
        "row 1, field 'y': got 2, expected one of 2 candidates",
    ),
    "an answer that is no candidate": (
        [{"t": "q", "u": ["x", "y"], "y": "z"}],
        {"text": "t,u"},
        "row 1, field 'y': got 'z', expected one of the u: x, y",
    ),
    "one row": (ROWS[:1], {"labels": "0,1"}, "has one row to train on"),
    "a number beyond all": (
        [{**ROWS[0], "y": 10**400}],
        {"kind": "regression"},
        "row 1, field 'y'.*a number from",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_MEMORY)
def test_what_is_wrong_with_rows_in_memory(what):
    rows, named, words = IN_MEMORY[what]
    given = {} if rows is None else {"train": rows}
    if "labels" in named:
        named = {"labels": named["labels"].split(",")}
    with pytest.raises(UserError) as told:
        own.add(given, **{"text": "t", "label": "y", "name": "wrong", **named})
    assert re.search(words, str(told.value)), told.value


def test_a_split_that_was_not_given():
    spec = own.add({"train": ROWS}, text="t", label="y", name="two_splits")
    with pytest.raises(UserError, match="none were given for test"):
        sources.find(spec).rows("test")


def test_a_cell_longer_than_python_s_limit(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,y\n" + "".join(f"{'a' * 200_000},{y}\n" for y in "xy"))
    spec = own.add({"train": path}, text="t", label="y", name="long")
    assert len(sources.find(spec).rows("train")[0]["t"]) == 200_000


def test_flags_without_rows(capsys):
    said = mistake(capsys, "train", "--task=cb", "--label=x")
    assert "--label speak of rows of your own" in said
    said = mistake(capsys, "train", "--task=x", "--test_file=x.csv")
    assert "give --train_file" in said


class Frame:
    """Rows as pandas gives them."""

    def __init__(self, rows):
        self.rows, self.columns = rows, list(rows[0])

    def to_dict(self, orient):
        assert orient == "records"
        return [{k: np.array(v)[()] for k, v in r.items()} for r in self.rows]


class Dataset(list):
    """Rows as `datasets` gives them: classes as numbers, with their names."""

    features: typing.ClassVar = {
        "verdict": types.SimpleNamespace(names=["yes", "no"])
    }

    def __init__(self, rows):
        super().__init__(
            {**row, "verdict": ["yes", "no"].index(row["verdict"])}
            for row in rows
        )


def of_pandas(rows, folder):
    return pandas.read_csv(folder / "a.csv")


def of_datasets(rows, folder):
    found = datasets.Dataset.from_list(rows)
    names = datasets.ClassLabel(names=["yes", "no"])
    return found.cast_column("verdict", names)


GIVEN = {
    "rows": lambda rows, folder: rows,
    "a file": lambda rows, folder: folder / "a.csv",
    "like pandas": lambda rows, folder: Frame(rows),
    "like datasets": lambda rows, folder: Dataset(rows),
    "pandas": of_pandas,
    "datasets": of_datasets,
}


@pytest.mark.parametrize("how", GIVEN)
def test_the_same_tokens_from_memory_and_from_a_file(how, tmp_path):
    rows = reviews()
    (tmp_path / "a.csv").write_text(as_csv(rows))
    tokens = []
    for given in (tmp_path / "a.csv", GIVEN[how](rows, tmp_path)):
        spec = own.add(
            {"train": given}, text="review", label="verdict", name="mine"
        )
        found = [
            encoding.encode(
                spec,
                sources.find(spec).rows(split),
                tokenizer=Tokenizer.builtin(),
                max_length=32,
            )
            for split in ("train", "validation")
        ]
        tokens.append(found)
        said = unanswered.read(spec, given)
        # A CSV can but spell numbers.
        found += [(each.row["review"], str(each.key["id"])) for each in said]
    assert tokens[0] == tokens[1]


def test_a_fifth_is_carved_out_by_label_and_always_the_same():
    rows = [{"t": f"row {n}", "y": "ab"[n % 10 == 0]} for n in range(100)]
    held = []
    for given in (rows, rows[::-1]):
        spec = own.add({"train": given}, text="t", label="y", name="carved")
        found = sources.find(spec).rows("validation")
        assert sorted(row["label"] for row in found).count(1) == 2
        held.append({row["t"] for row in found})
    assert held[0] == held[1]
    assert len(held[0]) == 20


def test_choices_by_fields_and_in_a_list():
    fields = [
        {"q": "Why?", "one": f"a{n}", "two": f"b{n}", "right": n % 2}
        for n in range(6)
    ]
    spec = own.add(
        {"train": fields, "validation": fields},
        text=("q", "one", "two"), label="right", kind="choice", name="fields",
    )  # fmt: skip
    row = sources.find(spec).rows("train")[1]
    assert views.encoder_texts(spec, row) == [("Why?", "a1"), ("Why?", "b1")]
    assert views.right_candidates(spec, row) == [False, True]
    listed = [{"q": "Why?", "all": ["x", "y"], "right": "y"}] * 3
    spec = own.add(
        {"train": listed, "validation": listed},
        text=("q", "all"), label="right", name="listed",
    )  # fmt: skip
    assert spec.kind == "choice"
    row = sources.find(spec).rows("train")[0]
    assert views.right_candidates(spec, row) == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"text_a": "{review.__class__}"},
        {"text_a": "{0}"},
        {"kind": "span"},
        {"labels": "ab"},
        {"columns": None},
    ],
)
def test_a_prompt_brings_no_task_that_reaches_for_more(change):
    spec = own.add(
        {"train": reviews()}, text="review", label="verdict", name="brought"
    )
    kept = {**json.loads(json.dumps(own.to_json(spec))), **change}
    with pytest.raises(UserError, match="the task that it brings is none"):
        own.adopt(kept)


def test_predictions_take_the_user_s_own_names(tmp_path, tiny):
    done = pj.train(
        tiny,
        train_rows=reviews(),
        text="review",
        label="verdict",
        task="named",
        steps=1,
        batch_size=8,
        max_length=16,
        prompt_length=2,
        quiet=True,
    )
    (found,) = pj.predict(done.prompt, [{"review": "So so."}], backbone=tiny)
    assert set(found["probabilities"]) == {"no", "yes"}
    with pytest.raises(UserError, match="'review'.*it has: body"):
        pj.predict(done.prompt, [{"body": "So so."}], backbone=tiny)
