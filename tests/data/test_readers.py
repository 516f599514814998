import dataclasses
import json
import os
import pathlib

import made_up_data
import pytest
from panda_jax.tasks import readers, rows, sources, specs
from panda_jax.tasks.rows import Place, checked
from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError

PAIR_TASKS = ["cb", "rte", "mrpc", "cola", "sst2", "stsb", "mnli"]
FILE_TASKS = [name for name in specs.names() if not specs.get(name).offline]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return str(made_up_data.write(tmp_path_factory.mktemp("data")))


def _write(spec, folder, *contents):
    """Writes the training files of a task; returns their paths."""
    found = []
    for name, content in zip(spec.files["train"], contents, strict=True):
        path = folder / name.split("|")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found.append(path)
    return found


# --- what is read ------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_TASKS)
def test_made_up_files_hold_five_and_three_rows(name, made_up):
    spec = specs.get(name)
    for split, count in (("train", 5), ("validation", 3)):
        found = readers.read(spec, split, made_up)
        assert len(found) == count
        for row in found:
            # Of where a span is the text itself says it.
            kept = set(rows.row_fields(spec)) - set(spec.pointed[2:])
            assert set(row) == kept


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_made_up_rows_are_read_as_their_authors_meant(name, made_up):
    spec = specs.get(name)
    for split, count in (("train", 5), ("validation", 3)):
        found = readers.read(spec, split, made_up)
        for i, row in enumerate(found):
            texts = tuple(row[field].strip() for field in spec.fields)
            assert texts == made_up_data.PAIRS[i][: len(texts)]
        want = [5 - i * 1.25 for i in range(count)]
        if name in ("cb", "rte", "mnli"):
            want = [i % spec.outputs for i in range(count)]
        elif name != "stsb":
            want = [1 - i % 2 for i in range(count)]
        assert [row["label"] for row in found] == want


CASES = {
    "copa": {
        "premise": "The rain came.",
        "choice1": "Noor sang.",
        "choice2": "Noor got wet.",
        "question": "effect",
        "label": 1,
    },
    "wic": {
        "word": "cold",
        "sentence1": "The tea is cold.",
        "sentence2": "A cold morning.",
        "label": 1,
    },
    "wsc": {
        "text": "It rang, so Per took the pot and * it * broke.",
        "span1_text": "the pot",
        "span2_text": "it",
        "label": 1,
    },
    "boolq": {
        "question": "what did he say",
        "passage": 'He said "it rains" and left.',
        "label": 0,
    },
    "multirc": {
        "paragraph": "Sent 1: Ida baked bread. Sent 2: Noor ate it, and so "
        "did Per.",
        "question": "Who ate bread?",
        "answer": "Per",
        "question_id": "3-10",
        "label": 1,
    },
    "record": {
        "passage": "Ida Berg won the race in Oslo. Noor was second.\n"
        "@highlight\nIda ran fast\n@highlight\nOslo cheered",
        "query": "The streets of @placeholder were full.",
        "entities": ["Ida Berg", "Oslo", "Noor", "Ida"],
        "answers": ["Oslo"],
    },
    "qqp": {
        "question1": "what did he say",
        "question2": "Why did he leave?",
        "label": 1,
    },
    "qnli": {
        "question": "what did he say",
        "sentence": 'He said "it rains" and left.',
        "label": 1,
    },
    "squad": {
        "question": "How high is it?",
        "context": made_up_data.CONTEXT,
        "answers": ["31 metres"],
        "starts": [128],
    },
    # Three places side by side: IOB1's B- parts them, two I- would not.
    "conll03": {
        "words": ["From", "Oslo", "Rome", "Paris"],
        "tags": ["O", "B-LOC", "B-LOC", "B-LOC"],
    },
    "conll04": {
        "words": ["Acme", "Oslo", "hired", "Noor"],
        "tags": ["B-Org", "B-Loc", "O", "B-Peop"],
    },
    "conll05": {
        "words": ["Ida", "sang", "and", "the", "dog", "slept", "."],
        "tags": ["O", "O", "O", "B-A0", "I-A0", "B-V", "O"],
        "predicate": 5,
    },
    "conll12": {
        "words": ["Noor", "ran", "and", "won"],
        "tags": ["B-ARG0", "B-V", "O", "O"],
        "predicate": 1,
    },
    "ontonotes": {"words": ["-LRB-", "Yes"], "tags": ["O", "O"]},
}


@pytest.mark.parametrize("name", CASES)
def test_the_second_row_is_exactly_this(name, made_up):
    spec = specs.get(name)
    row = readers.read(spec, "train", made_up)[1]
    if "tags" in row:
        row["tags"] = [spec.tag_names[tag] for tag in row["tags"]]
    assert row == CASES[name]


def test_further_rows_of_the_hard_formats(made_up):
    def read(name, split="train"):
        return readers.read(specs.get(name), split, made_up)

    # Several people answered; those who agree are heard once.
    answers = [(row["answers"], row["starts"]) for row in read("squad")]
    assert answers[3:] == [([" Bergen"], [13]), (["Snow"], [0])]
    answers = read("squad", "validation")
    assert answers[0]["answers"] == ["Ole Lund", "a fisher"]
    assert answers[0]["starts"] == [69, 53]
    assert answers[2]["starts"] == [581, 582]
    assert read("record")[0]["answers"] == ["Ida Berg", "Ida"]
    ids = [row["question_id"] for row in read("multirc")]
    assert ids == ["3-10"] * 3 + ["3-11"] * 2
    # The roles of the first predicate, which no bracket names.
    row = read("conll12")[2]
    assert row["predicate"] == 3
    words = [row["words"][row["predicate"]] for row in read("conll05")]
    assert words == ["sang", "slept", "gave", "wrote", "sold"]
    # The Bible has roles and no names.
    assert read("conll12")[4]["words"] == ["He", "spoke"]
    assert ["He", "spoke"] not in [row["words"] for row in read("ontonotes")]


def test_iob1_becomes_iob2(tmp_path):
    spec = specs.get("conll03")
    tags = ["I-PER", "I-PER", "B-PER", "I-PER", "I-LOC", "O", "I-LOC"]
    lines = "".join(f"w\u00a0{i} x y {tag}\n" for i, tag in enumerate(tags))
    _write(spec, tmp_path, lines.encode())
    (row,) = readers.read(spec, "train", str(tmp_path))
    names = [spec.tag_names[tag] for tag in row["tags"]]
    want = ["B-PER", "I-PER", "B-PER", "I-PER", "B-LOC", "O", "B-LOC"]
    assert names == want
    # Only blanks and tabs part columns.
    assert row["words"][1] == "w\u00a01"


def test_bool_and_int_labels_in_json_are_understood(tmp_path):
    spec = TaskSpec(
        name="flags",
        description="",
        text_a="{text}",
        labels=("no", "yes"),
        reader="jsonl",
        files={"train": ("a.jsonl", "b.jsonl")},
        columns={"text": "passage"},
        label_values={"false": "no", "true": "yes", "1": "yes"},
    )
    (tmp_path / "a.jsonl").write_text('{"passage": "x", "label": true}\n')
    (tmp_path / "b.jsonl").write_text('{"passage": "y\x85z", "label": 1}\n\n')
    found = readers.read(spec, "train", str(tmp_path))
    assert found == [{"text": "x", "label": 1}, {"text": "y\x85z", "label": 1}]


def test_blank_texts_are_kept_where_the_published_files_have_them(tmp_path):
    spec = specs.get("multirc")
    question = {"question": "q", "idx": 0}
    question["answers"] = [{"text": "", "label": 0}]
    passage = {"text": "p", "questions": [question]}
    line = json.dumps({"idx": 0, "passage": passage}).encode()
    _write(spec, tmp_path, line)
    (row,) = readers.read(spec, "train", str(tmp_path))
    assert row["answer"] == ""
    strict = dataclasses.replace(spec, lenient=False)
    with pytest.raises(UserError, match="'answer': got '', expected a text"):
        readers.read(strict, "train", str(tmp_path))


def test_checked_takes_class_names_where_the_source_does():
    copa = specs.get("copa")
    raw = CASES["copa"] | {"label": "choice2", "idx": 7}
    place = rows.Place("TFDS", 3, "row")
    row = rows.checked(copa, place, raw, coded=False)
    assert row == CASES["copa"]
    with pytest.raises(UserError, match="TFDS, row 3, .*got 'choice2'.*'0' or"):
        rows.checked(copa, place, raw)


# --- faults ------------------------------------------------------------------


def _json(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def _multirc(**change):
    answer = {"text": "a", "label": 1}
    question = {"question": "q", "idx": 0, "answers": [answer]}
    for key in set(change) & set(answer):
        answer[key] = change[key]
    for key in set(change) & {"question", "answers"}:
        question[key] = change[key]
    return _json(
        {"idx": 0, "passage": {"text": "p", "questions": [question]}}
        | {key: change[key] for key in change if key in ("idx", "passage")}
    )


def _record(start=0, end=2, query="@placeholder won", answers=("Ida",)):
    return _json(
        {
            "idx": 0,
            "passage": {
                "text": "Ida ran.",
                "entities": [{"start": start, "end": end}],
            },
            "qas": [
                {"query": query, "answers": [{"text": x} for x in answers]}
            ],
        }
    )


def _squad(**change):
    good = {"question": "q", "id": "1"}
    good["answers"] = [{"text": "Ida", "answer_start": 0}]
    paragraph = {"context": "Ida ran.", "qas": [good, good | change]}
    return _json({"data": [{"paragraphs": [paragraph]}]})


def _spert(**change):
    good = {"tokens": ["Ida", "ran"]}
    good["entities"] = [{"type": "Peop", "start": 0, "end": 1}]
    return _json([good, good | change])


def _entities(*spans, kind="Peop"):
    return [{"type": kind, "start": a, "end": b} for a, b in spans]


def _conll12(*lines):
    found = ["#begin document (bc/x); part 000"]
    for word, lemma, name, *roles in lines:
        cells = ["bc/x", "0", "0", word, "NN", "*", lemma, lemma, "-", "-"]
        found.append(" ".join([*cells, name, *roles, "-"]))
    return "\n".join([*found, "", "#end document"]).encode()


GOOD = b'{"premise": "a", "hypothesis": "b", "label": "neutral"}\n'
STSB = b"sentence1\tsentence2\tscore\n"
QQP = b"question1\tquestion2\tis_duplicate\n"
COPA = {"premise": "a", "choice1": "b", "choice2": "c", "question": "cause"}
WSC = {"text": "a", "label": True}
CONLL03 = b"-DOCSTART- -X- -X- O\n\nIda NN I-NP I-PER\n\n"
WORDS = b"Ida\nsang\n\nPer\nsat\n"

# Task, contents of its files (the fault is in the last), where, message.
FAULTS = {
    "bad json": ("cb", GOOD + b'{"premise": "a", \n', "line 2", "JSON"),
    "too deep": ("cb", GOOD + b"[" * 100_000, "line 2", "JSON"),
    "no object": ("cb", b"[1, 2]\n", "line 1", "a JSON object"),
    "missing field": (
        "cb",
        GOOD + b'{"premise": "a", "label": "neutral"}\n',
        "line 2",
        "field 'hypothesis': got 'nothing'.*premise, label",
    ),
    "wrong type": (
        "cb",
        b'{"premise": 3, "hypothesis": "b", "label": "neutral"}\n',
        "line 1",
        "field 'premise': got 3, expected a text",
    ),
    "empty text": (
        "cb",
        b'{"premise": "a", "hypothesis": " ", "label": "neutral"}\n',
        "line 1",
        "field 'hypothesis': got ' '",
    ),
    "half a character": (
        "cb",
        GOOD.replace(b'"a"', rb'"\ud800"'),
        "line 1",
        r"field 'premise': got '\\ud800', expected Unicode",
    ),
    "unknown label": (
        "cb",
        GOOD + GOOD.replace(b"neutral", b"netural"),
        "line 2",
        "field 'label': got 'netural', expected 'entailment' or",
    ),
    "test row": ("cb", GOOD.replace(b'"neutral"', b"null"), "line 1", "None"),
    "label code": (
        "sst2",
        b"sentence\tlabel\nfine\t2\n",
        "line 2",
        "'0' or '1'",
    ),
    "class name for a code": (
        "sst2",
        b"sentence\tlabel\nfine\tpositive\n",
        "line 2",
        "got 'positive'",
    ),
    "missing column": (
        "mrpc",
        b"\xef\xbb\xbfQuality\t#1 ID\t#2 ID\t#1 String\n",
        "line 1",
        "field 'sentence2'.*column '#2 String'",
    ),
    "wrong column count": (
        "sst2",
        b"sentence\tlabel\nfine\t1\na\tb\t1\n",
        "line 3",
        "expected 2 tab-separated columns, not 3",
    ),
    "wrong column count, no header": (
        "cola",
        b"s\t1\t\tfine\ns\t1\tfine\n",
        "line 2",
        "expected 4 tab-separated columns, not 3",
    ),
    "too many columns in a lenient file": (
        "qqp",
        QQP + b"torn\nq\tr\t1\nq\tr\t1\t1\n",
        "line 4",
        "expected 3 tab-separated columns, not 4",
    ),
    "blank line": ("cola", b"s\t1\t\tfine\n\ns\t1\t\tok\n", "line 2", "not 1"),
    "score above": ("stsb", STSB + b"a\tb\t5.01\n", "line 2", "5.01', .* to 5"),
    "score below": ("stsb", STSB + b"a\tb\t-1\n", "line 2", "got '-1'"),
    "score nan": ("stsb", STSB + b"a\tb\tnan\n", "line 2", "got 'nan'"),
    "score text": ("stsb", STSB + b"a\tb\thigh\n", "line 2", "got 'high'"),
    "nul byte": ("cb", GOOD + b"\0\0\n", "line 2", "NUL byte"),
    "latin-1": (
        "sst2",
        b"\xef\xbb\xbfsentence\tlabel\nfine\t1\n\xe9\t1\n",
        "line 3",
        "expected UTF-8",
    ),
    "latin-1 in one value": ("squad", b'{\n"\xe9": 1}', "line 2", "UTF-8"),
    "unknown value of a field": (
        "copa",
        _json(COPA | {"label": 0}, COPA | {"question": "why", "label": 0}),
        "line 2",
        "field 'question': got 'why', expected 'cause' or 'effect'",
    ),
    "no such choice": (
        "copa",
        _json(COPA | {"label": 2}),
        "line 1",
        "field 'label': got 2, expected '0' or '1'",
    ),
    "nested key missing": (
        "wsc",
        _json(WSC | {"target": {"span1_text": "a"}}),
        "line 1",
        "field 'span2_text': .*'target.span2_text'; it has: text, label",
    ),
    "nothing to look in": (
        "wsc",
        _json(WSC | {"target": 3}),
        "line 1",
        "field 'span2_text': got 'nothing'",
    ),
    "no passage": ("multirc", _json({}), "line 1", "field 'passage': got {}"),
    "passage of another type": (
        "multirc",
        _multirc() + _multirc(passage="p"),
        "line 2",
        "field 'passage': got 'p', expected an object",
    ),
    "answers that are no list": (
        "multirc",
        _multirc(answers={"a": 1}),
        "line 1",
        "field 'answers': got {'a': 1}, expected a list",
    ),
    "answer that is no object": (
        "multirc",
        _multirc(answers=["a"]),
        "line 1",
        "field 'text': got 'a', expected an object with the key 'text'",
    ),
    "id of another type": (
        "multirc",
        _multirc(idx=True),
        "line 1",
        "field 'idx': got True, expected a whole number",
    ),
    "answer without label": (
        "multirc",
        _multirc(label=None),
        "line 1",
        "field 'label': got None, expected 'false' or",
    ),
    "entity beyond the text": (
        "record",
        _record() + _record(end=8),
        "line 2",
        "field 'entities': got {'start': 0, 'end': 8}, .* < 8",
    ),
    "entity ends first": (
        "record",
        _record(start=3),
        "line 1",
        "field 'entities': got {'start': 3, 'end': 2}",
    ),
    "no placeholder": (
        "record",
        _record(query="Who won?"),
        "line 1",
        "field 'query': got 'Who won.', .*'@placeholder'",
    ),
    "answer among no entities": (
        "record",
        _record(answers=("Per",)),
        "line 1",
        "field 'answers': got 'Per', expected one of the entities: Ida",
    ),
    "query without answers": (
        "record",
        _record(answers=()),
        "line 1",
        r"field 'answers': got \[\], expected a list of texts, at least one",
    ),
    "bad whole json": (
        "squad",
        b'{"data": [\n{"paragraphs": ]}',
        "line 2",
        "field '.whole file.': .*paragraphs.*JSON",
    ),
    "whole json too deep": ("squad", b"[" * 100_000, "line 1", "JSON"),
    "no data": ("squad", b"[]", "question 1", "field 'data': got "),
    "answer not at its start": (
        "squad",
        _squad(answers=[{"text": "ran", "answer_start": 3}]),
        "question 2",
        "field 'starts': got 3, .*'ran'; there it says ' ra'",
    ),
    "answer before the start": (
        "squad",
        _squad(answers=[{"text": "n.", "answer_start": -2}]),
        "question 2",
        "field 'starts': got -2, expected a position",
    ),
    "start of another type": (
        "squad",
        _squad(answers=[{"text": "ran", "answer_start": "4"}]),
        "question 2",
        "field 'answer_start': got '4', expected a whole number",
    ),
    "question without answers": (
        "squad",
        _squad(answers=[]),
        "question 2",
        "field 'answers': got",
    ),
    "no list of sentences": ("conll04", b"{}", "line 1", "got 'dict'"),
    "entity beyond the words": (
        "conll04",
        _spert(entities=_entities((1, 3))),
        "sentence 2",
        "field 'entities': got .*, expected 0 <= start < end <= 2",
    ),
    "entity of no words": (
        "conll04",
        _spert(entities=_entities((1, 1))),
        "sentence 2",
        "field 'entities'",
    ),
    "overlapping entities": (
        "conll04",
        _spert(entities=_entities((0, 2), (1, 2))),
        "sentence 2",
        "'start': 1, 'end': 2}, expected an entity that overlaps no other",
    ),
    "unknown entity": (
        "conll04",
        _spert(entities=_entities((0, 1), kind="Person")),
        "sentence 2",
        "field 'tags': got 'B-Person', expected a tag such as .*B-Peop",
    ),
    "empty word": ("conll04", _spert(tokens=["", "a"]), "sentence 2", "a word"),
    "sentence without words": (
        "conll04",
        _spert(tokens=[], entities=[]),
        "sentence 2",
        r"field 'words': got \[\]",
    ),
    "column missing": (
        "conll03",
        CONLL03 + b"Per NN I-NP I-PER\nran VB O\n",
        "line 6",
        "got 'ran VB O', expected 4 columns, not 3",
    ),
    "unknown tag": (
        "conll03",
        CONLL03 + b"It PR O O\nran VB I-VP I-VP\n",
        "line 6",
        "field 'tags': got 'I-VP', expected a tag such as",
    ),
    "words and roles of different length": (
        "conll05",
        (WORDS, b"- (A0*)\nsing (V*)\n\n- (A0*)\nsit (V*)\n- *\n"),
        "line 4",
        "got '3 lines', expected 2, as in train.words from line 4 on",
    ),
    "fewer sentences of words": (
        "conll05",
        (b"Ida\nsang\n", b"- (A0*)\nsing (V*)\n\n-\n"),
        "line 4",
        "got '-', expected no more sentences: train.words has ended",
    ),
    "a column of roles too few": (
        "conll05",
        (WORDS, b"Ida *\nsing (V*)\n\n- (A0*)\nsit (V*)\n"),
        "line 1",
        "got '1 columns of roles', expected 2, one for each predicate",
    ),
    "a cell of roles too few": (
        "conll05",
        (WORDS, b"- (A0*)\nsing\n\n- (A0*)\nsit (V*)\n"),
        "line 2",
        "got 'sing', expected 2 columns, not 1",
    ),
    "bracket never closed": (
        "conll05",
        (WORDS, b"- *\nsing (V*)\n\n- (A0*\nsit *\n"),
        "line 4",
        r"field 'column 2': got '\(A0\*', expected a bracket that ends",
    ),
    "bracket never opened": (
        "conll05",
        (WORDS, b"- *\nsing (V*)\n\n- *)\nsit (V*)\n"),
        "line 4",
        r"field 'column 2': got '\*\)', expected no end",
    ),
    "bracket in a bracket": (
        "conll05",
        (WORDS, b"- (A0*\nsing (V*))\n\n- *\nsit (V*)\n"),
        "line 2",
        r"field 'column 2': got '\(V\*\)\)', expected .*no bracket within",
    ),
    "bracket across another": (
        "conll05",
        (WORDS, b"- (A0*\nsing (V*)\n\n- *\nsit (V*)\n"),
        "line 2",
        "field 'column 2': .*no bracket within",
    ),
    "unknown role": (
        "conll05",
        (WORDS, b"- (A0*)\nsing (V*)\n\n- (ARG0*)\nsit (V*)\n"),
        "line 4",
        "field 'tags': got 'B-ARG0'.*B-A0",
    ),
    "too few columns": (
        "conll12",
        b"bc/x 0 0 Ida NN *\n",
        "line 1",
        "expected 12 columns, not 6",
    ),
    "uneven columns": (
        "conll12",
        _conll12(("Ida", "-", "*", "*"), ("ran", "run", "*")),
        "line 3",
        "expected 13 columns, not 12",
    ),
    "no predicate in the roles": (
        "conll12",
        _conll12(("Ida", "ida", "*", "(ARG0*)"), ("ran", "run", "*", "*")),
        "line 2",
        r"field 'column 12': got 'no \(V\*\)'.* not 2 and 1",
    ),
    "names never closed": (
        "ontonotes",
        _conll12(("Ida", "-", "*"), ("Berg", "-", "(PERSON*")),
        "line 3",
        r"field 'column 11': got '\(PERSON\*', expected a bracket that ends",
    ),
    "unknown name": (
        "ontonotes",
        _conll12(("Ida", "-", "*"), ("Berg", "-", "(PER)")),
        "line 3",
        "field 'tags': got 'B-PER', expected a tag such as .*B-PER",
    ),
}


def test_the_faults_cover_every_reader():
    covered = {specs.get(name).reader for name, *_ in FAULTS.values()}
    assert covered == set(readers.READERS)
    assert {specs.get(name).reader for name in FILE_TASKS} == covered


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_place_and_field(fault, tmp_path):
    name, contents, where, message = FAULTS[fault]
    spec = specs.get(name)
    if isinstance(contents, bytes):
        contents = (contents,)
    path = _write(spec, tmp_path, *contents)[-1]
    with pytest.raises(UserError, match=message) as caught:
        readers.read(spec, "train", str(tmp_path))
    text = str(caught.value)
    assert text.startswith(f"{path}, {where}, field ")
    assert "\n" not in text
    assert len(text) < 400


TAGGED = {"words": ["Ida", "ran"], "tags": ["B-A0", "B-V"], "predicate": 1}
SPAN = {"question": "q", "context": "a b", "answers": ["b"], "starts": [2]}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("conll05", {"tags": ["O"]}, "'tags': got '1 tags', .* list of 2"),
        ("conll05", {"tags": "OO"}, "'tags': got 'OO', expected a list of 2"),
        ("conll05", {"tags": [0, 1]}, "'tags': got 0, expected a tag"),
        ("conll05", {"words": "Ida"}, "'words': got 'Ida', expected a list"),
        ("conll05", {"words": ["Ida", 3]}, "'words': got 3, expected a text"),
        ("conll05", {"predicate": 2}, "'predicate': got 2, .* the 2 words"),
        ("conll05", {"predicate": True}, "'predicate': got True"),
        ("squad", {"starts": [2, 0]}, r"'starts': got \[2, 0\], .*of 1 pos"),
        ("squad", {"context": "ab", "starts": [True]}, "'starts': got True"),
        (
            "squad",
            {"context": " b ", "answers": ["b "], "starts": [0]},
            "'starts': got 0, .* says 'b '; there it says ' b'",
        ),
        ("squad", {"answers": [" "]}, "'answers': got ' '"),
        ("multirc", {"question_id": None}, "'question_id': got None"),
    ],
)
def test_rows_of_other_sources_are_checked_too(name, change, message):
    raw = {**TAGGED, **SPAN, **CASES["multirc"], "question": "q", **change}
    with pytest.raises(UserError, match=f"^here, row 0, field {message}"):
        rows.checked(specs.get(name), rows.Place("here", 0, "row"), raw)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["cb", "mrpc", "squad", "conll03"])
def test_an_empty_file_is_an_error(name, data, tmp_path):
    spec = specs.get(name)
    (path,) = _write(spec, tmp_path, data)
    with pytest.raises(UserError, match="has no rows") as caught:
        readers.read(spec, "train", str(tmp_path))
    assert str(caught.value).startswith(f"{path} ")


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("sst2", [b"sentence\tlabel\n"]),
        ("conll03", [b"-DOCSTART- -X- -X- O\n"]),
        ("conll05", [b"Hello\n", b"-\n"]),
        ("conll04", [b"[]"]),
    ],
)
def test_a_file_that_holds_no_rows_is_an_error(name, contents, tmp_path):
    spec = specs.get(name)
    _write(spec, tmp_path, *contents)
    with pytest.raises(UserError, match="has no rows, expected at least one"):
        readers.read(spec, "train", str(tmp_path))


def test_more_sentences_of_words_than_of_roles_are_a_fault(tmp_path):
    spec = specs.get("conll05")
    path, _ = _write(spec, tmp_path, WORDS, b"- (A0*)\nsing (V*)\n")
    message = f"^{path}, line 4, .*got 'Per sat', .*: train.props has ended"
    with pytest.raises(UserError, match=message):
        readers.read(spec, "train", str(tmp_path))


def test_the_roles_take_two_files(tmp_path):
    files = {"train": ("a.words",)}
    spec = dataclasses.replace(specs.get("conll05"), files=files)
    _write(spec, tmp_path, b"Ida\n")
    with pytest.raises(UserError, match="'conll05'.* takes two files.*got 1"):
        readers.read(spec, "train", str(tmp_path))


# --- where files lie ---------------------------------------------------------


def test_missing_folder_and_file_say_the_layout(tmp_path, made_up):
    where = str(tmp_path / "no" / "where")
    with pytest.raises(UserError, match="data folder '.*where'.*--data_dir"):
        readers.read(specs.get("cb"), "train", where)
    layout = r"super_glue/CB/train\.jsonl.*val\.jsonl.*TFDS"
    with pytest.raises(UserError, match=layout):
        readers.read(specs.get("cb"), "train", str(tmp_path))
    layout = r"eng\.train' does not.*eng\.train or conll03/train\.txt, .*eng\."
    with pytest.raises(UserError, match=layout):
        readers.read(specs.get("conll03"), "train", str(tmp_path))
    with pytest.raises(UserError, match="authors ship them.$"):
        readers.read(specs.get("conll04"), "train", str(tmp_path))
    with pytest.raises(UserError, match="split 'dev'.*validation or test"):
        sources.find(specs.get("cb"), data_dir=made_up).rows("dev")
    with pytest.raises(UserError, match="'cb' has no test split with answers"):
        sources.find(specs.get("cb"), data_dir=made_up).rows("test")


def test_the_first_layout_that_exists_is_read(tmp_path):
    spec = specs.get("ontonotes")

    def read():
        found = readers.read(spec, "train", str(tmp_path))
        return [row["words"][0] for row in found]

    def put(name, word):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_conll12((word, "-", "(GPE)")))

    shipped = "conll-2012/v4/data/train/data/english/annotations"
    put(f"{shipped}/nw/b.v4_gold_conll", "third")
    put(f"{shipped}/bc/c/00/d.v4_gold_conll", "second")
    put(f"{shipped}/bc/c/00/a.v4_gold_conll", "first")
    put(f"{shipped}/bc/c/00/a.v4_auto_conll", "never")
    assert read() == ["first", "second", "third"]
    before = readers.fingerprint(spec, "train", str(tmp_path))
    put("conll12/train.gold_conll", "joined")
    assert read() == ["joined"]
    put("ontonotes/train/x_gold_conll", "own")
    assert read() == ["own"]
    put("ontonotes/train/data/chinese/x_gold_conll", "other")
    put("ontonotes/train/data/english/y_gold_conll", "english")
    assert read() == ["english"]
    assert readers.fingerprint(spec, "train", str(tmp_path)) != before


def test_a_pattern_that_matches_nothing_says_so(tmp_path):
    files = {"train": ("a/**/*.jsonl",)}
    spec = dataclasses.replace(specs.get("cb"), files=files)
    (tmp_path / "a/b.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match="No file matches '.*jsonl'"):
        readers.read(spec, "train", str(tmp_path))


# --- real data ---------------------------------------------------------------


def _real_data() -> str:
    beside = pathlib.Path(__file__).parents[3] / "shared" / "data"
    return os.environ.get("PANDA_DATA_DIR") or str(beside)


@pytest.mark.skipif(
    not os.path.isdir(_real_data()), reason="PANDA_DATA_DIR is not set"
)
@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("cb", 250, 56),
        ("copa", 400, 100),
        ("rte", 2490, 277),
        ("wic", 5428, 638),
        ("wsc", 554, 104),
        ("multirc", 27243, 4848),
        ("cola", 8551, 1043),
        ("mrpc", 3668, 408),
        ("stsb", 5749, 1500),
        ("sst2", 67349, 872),
        ("conll04", 922, 231),
    ],
)
def test_real_files_have_their_published_row_counts(name, train, validation):
    spec = specs.get(name)
    counts = {"train": train, "validation": validation}
    assert spec.rows == counts
    if not (pathlib.Path(_real_data()) / spec.files["train"][0]).is_file():
        pytest.skip(f"no {name} in this data folder")
    for split, count in counts.items():
        found = readers.read(spec, split, _real_data())
        assert len(found) == count
        if name == "multirc":
            passages = {row["question_id"].split("-")[0] for row in found}
            assert len(passages) == {"train": 456, "validation": 83}[split]


@pytest.mark.parametrize(
    ("text", "at", "words"),
    [
        ("It fell and it broke.", None, "which the text holds 2 times"),
        ("It fell and it broke.", 9, "a position among the 5 words, from 0"),
        ("It fell and it broke.", True, "a position among the 5 words"),
        ("It fell, and then it broke.", 2, "there it says .and."),
    ],
)
def test_a_pronoun_that_is_not_where_it_should_be(text, at, words):
    place = rows.Place("x", 1)
    raw = {"text": text, "span1_text": "a", "span2_text": "it", "label": "True"}
    raw |= {} if at is None else {"span2_index": at}
    with pytest.raises(UserError, match=words):
        rows.checked(specs.get("wsc"), place, raw, coded=False)


@pytest.mark.parametrize(
    ("text", "at", "marked"),
    [
        ("Per says it broke.", None, "Per says * it * broke."),
        ('Per: "It broke, it is."', 1, 'Per: "* It * broke, it is."'),
        ("It sits; bits fit it!", 4, "It sits; bits fit * it *!"),
    ],
)
def test_the_pronoun_that_is_meant_is_marked(text, at, marked):
    raw = {"text": text, "span1_text": "a", "span2_text": "it", "label": "True"}
    raw |= {} if at is None else {"span2_index": at}
    row = rows.checked(specs.get("wsc"), rows.Place("x", 1), raw, coded=False)
    assert row["text"] == marked


def test_a_row_without_a_field_says_what_it_has():
    place = Place("rows.jsonl", 3)
    with pytest.raises(UserError, match="'hypothesis'.*it has: premise, label"):
        checked(specs.get("cb"), place, {"premise": "x", "label": "neutral"})
