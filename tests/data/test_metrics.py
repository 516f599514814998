import itertools
import string
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from panda_jax.tasks import specs
from scipy import stats
from sklearn import metrics as sk

from panda_jax.data import task_metrics
from panda_jax.data.task_metrics import Grouped, compute, tag_spans
from panda_jax.errors import UserError

quick = settings(max_examples=60, deadline=None)


# --- class ids ---------------------------------------------------------------


@st.composite
def _guesses(draw):
    """Classes, targets, predictions; -1 and unseen classes among them."""
    classes = draw(st.integers(2, 5))
    pair = st.tuples(st.integers(0, classes - 1), st.integers(-1, classes - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=30))
    return classes, [a for a, _ in pairs], [b for _, b in pairs]


@quick
@given(_guesses())
@example((2, [1, 1, 0], [-1, -1, -1]))
@example((3, [0, 1, 2], [0, 1, -1]))
@example((4, [2], [2]))
def test_class_ids_against_sklearn(case):
    classes, targets, guesses = case
    got = {
        name: compute(name, targets, guesses, classes=classes)
        for name in ("accuracy", "matthews", "f1")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accuracy = sk.accuracy_score(targets, guesses)
        matthews = sk.matthews_corrcoef(targets, guesses)
        # Scikit-learn's own binary F1 refuses a third value.
        binary = sk.f1_score(
            np.equal(targets, 1), np.equal(guesses, 1), zero_division=0
        )
        each = sk.f1_score(
            targets,
            guesses,
            labels=range(classes),
            average="macro",
            zero_division=0,
        )
    assert got["accuracy"] == pytest.approx(accuracy)
    assert got["matthews"] == pytest.approx(matthews)
    assert got["f1"] == pytest.approx(binary if classes == 2 else each)
    grouped = [Grouped("q", target) for target in targets]
    for name, value in got.items():
        assert compute(name, grouped, guesses, classes=classes) == value


def test_no_label_is_never_right():
    targets, right = [0, 1, 0, 1, 1], [0, 1, 0, 1, 1]
    wrong = [0, 1, 0, 1, -1]
    assert compute("accuracy", targets, wrong) == 0.8
    assert compute("f1", targets, wrong, classes=2) == pytest.approx(0.8)
    assert compute("f1", targets, wrong, classes=3) == pytest.approx(1.8 / 3)
    assert compute("matthews", targets, right) == pytest.approx(1)
    assert 0 < compute("matthews", targets, wrong) < 1
    nothing = [-1] * 5
    for name in ("accuracy", "f1", "matthews"):
        assert compute(name, targets, nothing, classes=2) == 0.0


def test_constant_class_ids_give_zero_not_nan():
    assert compute("matthews", [0, 1, 0, 1], [0] * 4) == 0.0
    assert compute("f1", [0] * 4, [0] * 4, classes=2) == 0.0
    assert compute("f1", [0] * 4, [0] * 4, classes=4) == 0.25


@quick
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(-1, 1)),
        min_size=1,
    )
)
def test_multirc_against_a_second_writing(rows):
    targets = [Grouped(f"p-{group}", value) for group, value, _ in rows]
    guesses = [guess for *_, guess in rows]
    # By question: sort, then look for a wrong row in each run.
    runs = itertools.groupby(sorted(rows), key=lambda row: row[0])
    right = [not any(a != b for _, a, b in run) for _, run in runs]
    want = np.mean(right)
    assert compute("exact_match", targets, guesses) == pytest.approx(want)
    both = sum(a == b == 1 for _, a, b in rows)
    found = sum(b == 1 for *_, b in rows)
    there = sum(a for _, a, _ in rows)
    precision, recall = both / max(found, 1), both / max(there, 1)
    f1a = 2 * precision * recall / max(precision + recall, 1e-9)
    got = compute("f1", targets, guesses, classes=2)
    assert got == pytest.approx(f1a)


# --- numbers -----------------------------------------------------------------

_numbers = st.floats(-10, 10, width=16)


@quick
@given(st.lists(st.tuples(_numbers, _numbers), min_size=2, max_size=40))
def test_pearson_spearman_against_scipy(pairs):
    targets, guesses = (list(side) for side in zip(*pairs, strict=True))
    got = compute("pearson_spearman", targets, guesses)
    if len(set(targets)) == 1 or len(set(guesses)) == 1:
        assert got == 0.0
        return
    want = stats.pearsonr(targets, guesses)[0] / 2
    want += stats.spearmanr(targets, guesses)[0] / 2
    assert got == pytest.approx(want, abs=1e-9)
    other = compute("pearson_spearman", targets, [-x for x in guesses])
    assert other == pytest.approx(-want, abs=1e-9)


def test_constant_numbers_give_zero_not_nan():
    assert compute("pearson_spearman", [0.0, 1.0, 5.0], [2.5] * 3) == 0.0
    assert compute("pearson_spearman", [2.5] * 3, [0.0, 1.0, 5.0]) == 0.0
    assert compute("pearson_spearman", [1.0], [2.0]) == 0.0


# --- answers -----------------------------------------------------------------


def _plain_words(text):
    """Normalised by hand: no regular expression, no translation table."""
    kept = [c for c in text.lower() if c not in set(string.punctuation)]
    runs = ["".join(run) for _, run in itertools.groupby(kept, key=str.isalnum)]
    articles = ("a", "an", "the")
    return "".join(" " if run in articles else run for run in runs).split()


def _plain_f1(right, found):
    """Sorts and merges; precision and recall apart, as the scripts do."""
    right, found = sorted(_plain_words(right)), sorted(_plain_words(found))
    i = j = same = 0
    while i < len(right) and j < len(found):
        if right[i] == found[j]:
            same, i, j = same + 1, i + 1, j + 1
        elif right[i] < found[j]:
            i += 1
        else:
            j += 1
    if not same:
        return 0.0
    precision, recall = same / len(found), same / len(right)
    return 2 * precision * recall / (precision + recall)


_WORDS = """the The a an AN cat Cat's 12,000 a-b a_b the. “a” a\u0301 café İ
straße — ' - anthem breath a\u00a0b \u00a0"""
_pieces = st.sampled_from(_WORDS.replace("\n", " ").split(" "))
_answers = st.one_of(
    st.lists(_pieces, max_size=5).map(" ".join),
    st.lists(_pieces, max_size=3).map("".join),
    st.text(max_size=6),
)


@quick
@given(
    st.lists(
        st.tuples(st.lists(_answers, min_size=1, max_size=3), _answers),
        min_size=1,
        max_size=6,
    )
)
@example([(["The cat"], "cat, a"), (["the"], "a."), (["x"], "")])
@example([(["an a-b the"], "AB"), (["the cat the cat"], "cat cat cat")])
def test_answers_against_a_second_writing(rows):
    targets = [accepted for accepted, _ in rows]
    guesses = [guess for _, guess in rows]
    f1, equal = [], []
    for accepted, guess in rows:
        f1.append(max(_plain_f1(answer, guess) for answer in accepted))
        equal.append(
            any(_plain_words(a) == _plain_words(guess) for a in accepted)
        )
    assert compute("answer_f1", targets, guesses) == pytest.approx(np.mean(f1))
    got = compute("answer_exact_match", targets, guesses)
    assert got == pytest.approx(np.mean(equal))


@pytest.mark.parametrize(
    ("accepted", "answer", "f1", "equal"),
    [
        (["the Panthers"], "Panthers!", 1, 1),
        (["Denver Broncos", "Broncos"], "broncos", 1, 1),
        (["gold and blue"], "a gold", 1 / 2, 0),
        (["blue gold"], "gold blue", 1, 0),
        (["b b c"], "b d", 2 / 5, 0),
        (["anthem"], "them", 0, 0),
        # An article leaves a space: typographic quotes are no punctuation.
        (["“a” cat"], "cat", 1 / 2, 0),
        # Without a word on either side the scripts say equal, and F1 0.
        (["the"], "", 0, 1),
        (("x",), "", 0, 0),
    ],
)
def test_answers_by_hand(accepted, answer, f1, equal):
    got = compute("answer_f1", [accepted], [answer])
    assert got == pytest.approx(f1)
    assert compute("answer_exact_match", [accepted], [answer]) == equal


# --- spans -------------------------------------------------------------------

_TYPES = ("A0", "A1", "C-A0", "V", "C-V", "R-V")
_tags = st.one_of(
    st.just("O"),
    st.sampled_from([f"{place}-{x}" for place in "BI" for x in _TYPES]),
)
_sentences = st.lists(
    st.lists(st.tuples(_tags, _tags), max_size=9), min_size=1, max_size=4
)


def _sides(sentences):
    return (
        [[pair[side] for pair in sentence] for sentence in sentences]
        for side in (0, 1)
    )


def _seqeval(targets, guesses):
    seqeval = pytest.importorskip("seqeval.metrics")
    return seqeval.f1_score(targets, guesses, zero_division=0)


@quick
@given(_sentences)
@example([[("B-A0", "I-A0"), ("I-A0", "I-A0"), ("B-A0", "I-A1")]])
@example([[("O", "O")], []])
def test_span_f1_against_seqeval(sentences):
    targets, guesses = _sides(sentences)
    got = compute("span_f1", targets, guesses)
    assert got == pytest.approx(_seqeval(targets, guesses))


@quick
@given(_sentences)
@example([[("B-A0", "B-A0"), ("B-V", "O"), ("I-A0", "B-A0")]])
@example([[("B-V", "B-V")]])
def test_role_f1_against_seqeval_without_the_predicate(sentences):
    targets, guesses = _sides(sentences)
    # Spans are of one type, so the other spans keep their ends.
    kept = [
        [
            ["O" if tag[2:] in ("V", "C-V") else tag for tag in tags]
            for tags in side
        ]
        for side in (targets, guesses)
    ]
    got = compute("role_f1", targets, guesses)
    assert got == pytest.approx(_seqeval(*kept))


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("", []),
        ("O O", []),
        ("B-x I-x I-x", [("x", 0, 3)]),
        ("B-x B-x", [("x", 0, 1), ("x", 1, 2)]),
        ("O I-x I-x O", [("x", 1, 3)]),
        ("I-x I-y", [("x", 0, 1), ("y", 1, 2)]),
        ("I-x B-x O I-x", [("x", 0, 1), ("x", 1, 2), ("x", 3, 4)]),
        ("B-C-A0 I-C-A0 I-A0", [("C-A0", 0, 2), ("A0", 2, 3)]),
    ],
)
def test_spans_by_hand(tags, spans):
    assert tag_spans(tags.split()) == spans


def test_spans_count_over_all_sentences():
    targets = [["B-x", "O"], ["B-x", "I-x"], ["O"]]
    guesses = [["B-x", "O"], ["B-x", "O"], ["B-y"]]
    assert compute("span_f1", targets, guesses) == pytest.approx(2 / 5)
    assert compute("span_f1", targets, targets) == 1.0
    assert compute("span_f1", [["O"]], [["O"]]) == 0.0


# --- the table and its errors ------------------------------------------------


def test_every_task_names_known_metrics():
    used = {name for task in specs.names() for name in specs.get(task).metrics}
    assert used == set(task_metrics.METRICS)


@pytest.mark.parametrize(
    ("name", "targets", "guesses", "message"),
    [
        ("acuracy", [0], [0], "metric 'acuracy'.*'accuracy'"),
        ("accuracy", [0, 1], [0], "2 targets and 1 predictions"),
        ("span_f1", [], [], "at least 1"),
        ("f1", [0], [0], "got 0 classes"),
        ("exact_match", [0], [0], "must name the field"),
        (
            "pearson_spearman",
            [0.0, 1.0],
            [np.nan, 1.0],
            "in 1 of 2 predictions: the run diverged. Lower the learning rate",
        ),
        ("pearson_spearman", [0.0], [np.inf], "in 1 of 1"),
        ("answer_f1", ["text"], ["text"], "Question 0.*'text'.*a list"),
        ("answer_exact_match", [["a"], []], ["a", "b"], "Question 1"),
        ("span_f1", [["O"], ["O"]], [["O"], []], "Sentence 1 has 1 tags and 0"),
        ("role_f1", [["O"]], [["A0"]], "Unknown tag 'A0' of word 0"),
        ("span_f1", [["O", "B-"]], [["O", "O"]], "Unknown tag 'B-' of word 1"),
    ],
)
def test_errors_say_what_is_wrong(name, targets, guesses, message):
    with pytest.raises(UserError, match=message):
        compute(name, targets, guesses)
