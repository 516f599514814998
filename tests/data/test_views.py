"""Both views of a row, and the way back from a text to an answer."""

import dataclasses

import pytest
import small_spiece
from hypothesis import given, settings
from hypothesis import strategies as st
from panda_jax.tasks import specs, views

from panda_jax.data import task_metrics
from panda_jax.data.text_tokenizer import TextTokenizer

COPA = {
    "premise": "The lake froze.",
    "question": "effect",
    "choice1": "Boats stayed away.",
    "choice2": "Fish sang.",
    "label": 0,
}
RECORD = {
    "passage": "Ana met Bo in Rome.\n@highlight\nBo wrote to Ana",
    "query": "Later @placeholder sailed.",
    "entities": ["Ana", "Bo", "Rome"],
    "answers": ["Bo", "Ana"],
}
ROLES = {"words": ["Ana", "sold", "it", "."], "predicate": 1}


def tags(name, *written):
    names = specs.get(name).tag_names
    return [names.index(tag) for tag in written]


@pytest.mark.parametrize(
    ("name", "row", "encoder", "text", "target"),
    [
        (
            "cb",
            {"premise": "a\n b", "hypothesis": "c", "label": 2},
            [("a\n b", "c")],
            "cb hypothesis: c premise: a b",
            "neutral",
        ),
        (
            "wic",
            {"sentence1": "s", "sentence2": "t", "word": "w", "label": 1},
            [("w: s", "w: t")],
            "wic sentence1: s sentence2: t word: w",
            "True",
        ),
        (
            "wsc",
            {"span1_text": "Ana", "span2_text": "she", "text": "t", "label": 0},
            [("she: t", "Ana")],
            "wsc span1: Ana span2: she text: t",
            "False",
        ),
        (
            "copa",
            COPA,
            [
                ("The lake froze. so", "Boats stayed away."),
                ("The lake froze. so", "Fish sang."),
            ],
            "copa choice1: Boats stayed away. choice2: Fish sang. premise: "
            "The lake froze. question: effect",
            "choice1",
        ),
        (
            "record",
            RECORD,
            [
                ("Ana met Bo in Rome. Bo wrote to Ana", f"Later {x} sailed.")
                for x in ("Ana", "Bo", "Rome")
            ],
            "record query: Later @placeholder sailed. entities: Ana, Bo, Rome "
            "passage: Ana met Bo in Rome. Bo wrote to Ana",
            "Bo",
        ),
        (
            "multirc",
            {
                "paragraph": "p",
                "question": "q?",
                "answer": "a",
                "label": 1,
                "question_id": "0-0",
            },
            [("p", "q? a")],
            "multirc question: q? answer: a paragraph: p",
            "True",
        ),
        (
            "stsb",
            {"sentence1": "a", "sentence2": "b", "label": 3.29},
            [("a", "b")],
            "stsb sentence1: a sentence2: b",
            "3.2",
        ),
    ],
)
def test_a_row_in_both_views(name, row, encoder, text, target):
    spec = specs.get(name)
    assert views.encoder_texts(spec, row) == encoder
    assert views.text_example(spec, row) == (text, target)


def test_words_and_answers_as_text():
    row = ROLES | {"tags": tags("conll05", "B-A0", "B-V", "B-A1", "O")}
    assert views.text_example(specs.get("conll05"), row) == (
        "conll05 Ana * sold * it .",
        "A0: Ana ; V: sold ; A1: it",
    )
    row = {"words": ["it", "rains"], "tags": tags("conll04", "O", "O")}
    assert views.text_example(specs.get("conll04"), row)[1] == "none"
    row = {"context": "c d", "question": "q", "answers": ["c", "d"]}
    assert views.text_example(specs.get("squad"), row | {"starts": [0, 2]}) == (
        "question: q context: c d",
        "c",
    )


def test_fields_may_hold_braces():
    row = {"premise": "{premise} {0}", "hypothesis": "{}", "label": 0}
    spec = specs.get("cb")
    assert views.encoder_texts(spec, row) == [("{premise} {0}", "{}")]
    assert "premise: {premise} {0}" in views.text_example(spec, row)[0]


def test_what_a_model_writes_is_read_with_care():
    def answer(name, text, **reference):
        return views.answer_from_text(specs.get(name), text, reference)

    assert answer("cb", " contradiction ") == 1
    assert answer("cb", "contradict") == views.UNKNOWN == -1
    assert answer("stsb", "3.4") == 3.4
    for text in ("three", "nan", "inf", "-inf", "1e999", ""):
        assert answer("stsb", text) == -1.0
    assert answer("copa", "choice2") == 1
    assert answer("squad", " the  cat") == "the cat"
    words = ["Bo", "saw", "New", "York", "and", "Bo"]
    said = "Peop: Bo ; Loc: New York ; Peop: Bo"
    assert answer("conll04", said, words=words) == [
        "B-Peop",
        "O",
        "B-Loc",
        "I-Loc",
        "O",
        "B-Peop",
    ]
    for nonsense in ("", "none", ";;", "Town: Bo", "Loc:", "Loc: Rome", ": Bo"):
        assert answer("conll04", nonsense, words=words) == ["O"] * 6


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_perfect_text_has_a_perfect_score(data):
    spec = specs.get("conll04")
    words = data.draw(
        st.lists(st.sampled_from(["Bo", "York", "New", ",", "a"]), min_size=1)
    )
    ids = st.integers(0, len(spec.tag_names) - 1)
    ids = data.draw(st.lists(ids, min_size=len(words), max_size=len(words)))
    row = {"words": words, "tags": ids}
    reference = views.reference(spec, row)
    _, text = views.text_example(spec, row)
    target = views.text_target(spec, reference)
    said = views.answer_from_text(spec, text, reference)
    assert said == target
    # As many spans as there are, of the same types and words.
    names = views.tag_names(spec, ids)
    found, gold = (
        [(kind, words[a:b]) for kind, a, b in task_metrics.tag_spans(some)]
        for some in (said, names)
    )
    assert found == gold


def test_training_keeps_right_candidates_and_few_others():
    spec = specs.get("record")
    row = RECORD | {"entities": [*RECORD["entities"], *"abcdefghij"]}
    few = views.fewer_candidates(spec, row)
    assert few == views.fewer_candidates(spec, row)
    assert len(few["entities"]) == spec.train_choices == 8
    assert {"Ana", "Bo"} <= set(few["entities"])
    order = [row["entities"].index(name) for name in few["entities"]]
    assert order == sorted(order)
    other = views.fewer_candidates(spec, row | {"query": "@placeholder."})
    assert other["entities"] != few["entities"]
    assert views.fewer_candidates(spec, RECORD) == RECORD
    # A row of right answers alone would teach nothing.
    many = row | {"answers": row["entities"][:10]}
    assert len(views.fewer_candidates(spec, many)["entities"]) == 11
    assert views.fewer_candidates(specs.get("copa"), COPA) == COPA


def test_a_reference_is_enough_to_judge():
    for name, row, target, shown in (
        ("copa", COPA, 0, "choice1"),
        ("record", RECORD, ["Bo", "Ana"], "Bo | Ana"),
        ("stsb", {"label": 2.5, "sentence1": "a"}, 2.5, "2.5"),
        (
            "conll04",
            {"words": ["Bo", "x"], "tags": [5, 0]},
            ["B-Peop", "O"],
            "Peop: Bo",
        ),
    ):
        spec = specs.get(name)
        reference = views.reference(spec, row)
        assert views.target(spec, reference) == target
        assert views.shown(spec, reference) == shown
        assert "sentence1" not in reference
    row = {"label": 1, "question_id": "3-1", "paragraph": "long"}
    reference = views.reference(specs.get("multirc"), row)
    assert views.target(specs.get("multirc"), reference) == ("3-1", 1)
    assert "paragraph" not in reference


@pytest.fixture(scope="module")
def poor(tmp_path_factory):
    """A vocabulary of a few English words' letters alone."""
    folder = tmp_path_factory.mktemp("poor")
    texts = ["Peop: Ana left ; Loc: New York", "Org: small klein ; Other: x"]
    (folder / "spiece.model").write_bytes(small_spiece.trained(texts * 9, 60))
    return TextTokenizer.from_file(folder)


WORDS = ["Nu\u00f1ez", "left", "\u0141\u00f3d\u017a", "``", "New", "York"]
NAMES = ["B-Peop", "O", "B-Loc", "O", "B-Loc", "I-Loc"]


def test_a_perfect_answer_is_perfect_in_any_vocabulary(poor):
    spec = specs.get("conll04")
    row = {"words": WORDS, "tags": tags("conll04", *NAMES)}
    reference = views.reference(spec, row)
    said = poor.written(views.text_example(spec, row)[1])
    assert "\u0141" not in said
    target = views.text_target(spec, reference, poor.written)
    assert target == NAMES
    found = views.answer_from_text(spec, said, reference, poor.written)
    assert task_metrics.compute("span_f1", [target], [found]) == 1.0
    # Another word of letters that the vocabulary lacks is said alike; one that
    # is not in the sentence is none.
    other = views.answer_from_text(spec, "Loc: Oslo", reference, poor.written)
    assert other == ["O"] * len(WORDS)


def test_answers_are_judged_as_the_vocabulary_writes_them(poor):
    spec = specs.get("squad")
    reference = {"context": " ".join(WORDS), "answers": ["Nu\u00f1ez left"]}
    said = poor.written("Nu\u00f1ez left")
    target = views.text_target(spec, reference, poor.written)
    found = views.answer_from_text(spec, said, reference, poor.written)
    assert task_metrics.compute("answer_f1", [target], [found]) == 1.0
    assert task_metrics.compute("answer_f1", [target], ["left"]) < 1.0


def test_label_words_are_judged_as_the_vocabulary_writes_them(poor):
    spec = dataclasses.replace(
        specs.get("cb"), labels=("gro\u00df", "klein"), name="sizes"
    )
    for number, label in enumerate(spec.labels):
        said = poor.written(label)
        answer = views.answer_from_text(spec, said, {}, poor.written)
        assert answer == number
