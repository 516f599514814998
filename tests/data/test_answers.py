"""Outputs to answers, each against a slow and plain second way."""

import json

import numpy as np
import pytest
from panda_jax.tasks import specs

from panda_jax.data import answers
from panda_jax.data.examples import Examples
from panda_jax.errors import UserError


def make(kind, question, references, *, labels=None, T=6, **spans):
    question = list(question)
    R = len(question)
    tokens = np.ones((R, T), np.int32)
    return Examples(
        kind=kind,
        tokens=tokens,
        segments=0 * tokens,
        labels=np.zeros(R, np.int32) if labels is None else labels,
        question=np.array(question, np.int32),
        references=json.dumps(references).encode(),
        **spans,
    )


def test_the_best_candidate_of_each_question():
    examples = make("choice", [0, 0, 1, 1], [{"label": 0}, {"label": 0}])
    scores = np.array([[0.1], [0.2], [-1.0], [-2.0]])
    copa = specs.get("copa")
    assert answers.predictions(copa, examples, scores) == [1, 0]
    assert answers.scores(copa, examples, scores) == {"accuracy": 0.5}
    references = [
        {"entities": ["a", "b", "c"], "answers": ["c", "a"]},
        {"entities": ["d"], "answers": ["d"]},
        {"entities": ["e", "New f"], "answers": ["f"]},
    ]
    examples = make("choice", [0, 0, 0, 1, 2, 2], references)
    scores = np.array([[0.0], [1.0], [3.0], [-9.0], [1.0], [2.0]])
    record = specs.get("record")
    found = answers.predictions(record, examples, scores)
    assert found == ["c", "d", "New f"]
    assert answers.scores(record, examples, scores) == {
        "answer_f1": pytest.approx((1 + 1 + 2 / 3) / 3),
        "answer_exact_match": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize(
    ("task", "references", "expected"),
    [
        ("cb", [{"label": 1}, {"label": 1}, {"label": 2}], 2 / 3),
        ("cola", [{"label": 1}, {"label": 1}, {"label": 0}], 0.0),
        # Saying yes to all: precision 1/3, recall 1.
        (
            "multirc",
            [{"label": x} for x in (0, 0, 1)],
            0.5,
        ),
        ("copa", [{"label": 0}, {"label": 1}, {"label": 1}], 2 / 3),
        ("stsb", [{"label": 1.0}, {"label": 4.0}], 0.0),
        ("record", [{"entities": ["a"], "answers": ["a"]}], 0.0),
        ("squad", [{"context": "a b", "answers": ["b"]}], 0.0),
        ("conll04", [{"words": ["a", "b"], "tags": [1, 0]}], 0.0),
    ],
)
def test_the_floor_is_the_best_answer_that_reads_nothing(
    task, references, expected
):
    spec = specs.get(task)
    if spec.group:
        references = [{spec.group: "q", **x} for x in references]
    examples = make(spec.kind, range(len(references)), references)
    assert answers.floor(spec, examples) == pytest.approx(expected)


def test_words_that_were_cut_off_count_as_missed():
    names = specs.get("conll04").tag_names
    gold = [names.index(x) for x in ("B-Loc", "O", "B-Org", "I-Org")]
    labels = np.array([[-1, 1, -1, 0, -1, -1]])  # two of four words fit
    examples = make(
        "tags",
        [0],
        [{"words": list("abcd"), "tags": gold}],
        labels=labels,
    )
    outputs = np.array([[5, 1, 5, 0, 5, 5]])
    spec = specs.get("conll04")
    assert answers.predictions(spec, examples, outputs) == [
        ["B-Loc", "O", "O", "O"]
    ]
    assert answers.scores(spec, examples, outputs)["span_f1"] == (
        pytest.approx(2 / 3)
    )


def test_spans_are_the_best_of_all_windows(rng):
    spec, T = specs.get("squad"), 50
    context = "".join(chr(97 + i % 26) for i in range(200))
    question = [0, 0, 1, 2, 2, 2]
    starts = np.zeros((6, T), np.int32)
    ends = np.zeros((6, T), np.int32)
    for row, begin in enumerate((0, 20, 0, 0, 15, 30)):
        for at in range(4, T - 1 - row):  # the rest is not of the context
            starts[row, at] = 1 + 3 * (begin + at - 4)
            ends[row, at] = starts[row, at] + 2
    references = [{"context": context, "answers": ["x"]}] * 3
    examples = make(
        "span", question, references, T=T, char_starts=starts, char_ends=ends
    )
    for _ in range(20):
        logits = rng.normal(size=(6, T, 2))
        want = []
        for q in range(3):
            best = (-np.inf, "")
            for row in (i for i in range(6) if question[i] == q):
                for a in range(T):
                    for b in range(a, min(a + answers.LONGEST_ANSWER, T)):
                        if not (starts[row, a] and starts[row, b]):
                            continue
                        value = logits[row, a, 0] + logits[row, b, 1]
                        text = context[starts[row, a] - 1 : ends[row, b] - 1]
                        best = max(best, (value, text))
            want.append(best[1])
        assert answers.predictions(spec, examples, logits) == want


def test_of_equal_spans_the_shortest_then_the_first(rng):
    """Whole numbers, so that most are equal; each of the four is another text.

    Of windows that are equal in all the last counts.
    """
    spec, T = specs.get("squad"), 12
    context = "".join(chr(97 + i % 26) for i in range(120))
    at = np.arange(T, dtype=np.int32)
    starts = np.stack([1 + 3 * at, 61 + 3 * at]) * (at > 1)
    ends = (starts + 2) * (starts > 0)
    examples = make(
        "span",
        [0, 0],
        [{"context": context, "answers": ["x"]}],
        T=T,
        char_starts=starts.astype(np.int32),
        char_ends=ends.astype(np.int32),
    )
    decided = 0
    for _ in range(60):
        logits = rng.integers(0, 2, size=(2, T, 2)).astype(np.float32)
        found = [
            (-logits[row, a, 0] - logits[row, b, 1], row, b - a, a, b)
            for row in (0, 1)
            for a in range(2, T)
            for b in range(a, T)
        ]
        best = min(value for value, *_ in found)
        equal = [x for x in found if x[0] == best]
        row = max(row for _, row, *_ in equal)
        _, _, a, b = min(x[1:] for x in equal if x[1] == row)
        want = context[starts[row, a] - 1 : ends[row, b] - 1]
        assert answers.predictions(spec, examples, logits) == [want]
        decided += len(equal) > 2
    assert decided > 40


def test_of_equal_answers_the_first():
    cb, copa = specs.get("cb"), specs.get("copa")
    examples = make("classification", [0, 1], [{"label": 0}] * 2)
    scores = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert answers.predictions(cb, examples, scores) == [1, 0]
    examples = make("choice", [0, 0, 0, 1, 1], [{"label": 0}] * 2)
    scores = np.array([[0.0], [1.0], [1.0], [-1.0], [-1.0]])
    assert answers.predictions(copa, examples, scores) == [1, 0]


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("cb", np.array([[0.0, np.nan, 1.0]])),
        ("stsb", np.array([[np.inf]])),
        ("copa", np.array([[np.nan]])),
        ("conll04", np.array([[0, 0, -1, 0, 0, 0]])),
        ("squad", np.full((1, 6, 2), np.nan)),
    ],
)
def test_diverged_outputs_are_an_error(task, outputs):
    spec = specs.get(task)
    examples = make(spec.kind, [0], [{}])
    with pytest.raises(UserError, match="1 of 1 rows: the run diverged"):
        answers.predictions(spec, examples, outputs)


def test_a_batch_of_choices_never_splits_a_question():
    examples = make("choice", [0, 0, 0, 1, 2, 2], [{}] * 3)
    assert len(examples) == 3
    assert examples.rows(np.array([2, 1])).tolist() == [[4, 5, -1], [3, -1, -1]]
    labels = np.array([0, 1, 1, 1, 0, 1])
    examples = make("choice", [0, 0, 0, 1, 2, 2], [{}] * 3, labels=labels)
    batch = examples.batch(np.array([0, 1]))
    assert batch.tokens.shape == (2, 3, 6)
    assert batch.labels.tolist() == [[0, 1, 1], [1, -1, -1]]
    assert batch.tokens[1, 1:].sum() == 0
    some = examples.subset([2, 0])
    assert some.question.tolist() == [0, 0, 1, 1, 1]
    assert some.labels.tolist() == [0, 1, 0, 1, 1]
