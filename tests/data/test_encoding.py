"""Rows as an encoder reads them, against Hugging Face's own tokenizer."""

import dataclasses

import numpy as np
import pytest
import transformers
from panda_jax.tasks import encoding, specs

from panda_jax.data.tokenizer import Tokenizer

WORDS = ["Mrs.", "Unpronounceable-Name", "flew", "to", "Zürich", "in", "1994"]


@pytest.fixture(scope="module")
def tokenizer(minilm_folder):
    return Tokenizer.from_folder(minilm_folder)


@pytest.fixture(scope="module")
def theirs(minilm_folder):
    return transformers.AutoTokenizer.from_pretrained(minilm_folder)


def encode(name, row, tokenizer, max_length=128):
    spec = specs.get(name)
    (found,) = encoding.encode(
        spec, [row], tokenizer=tokenizer, max_length=max_length
    )
    return found


@pytest.mark.parametrize("max_length", [128, 12, 8])
def test_tags_stand_on_first_pieces(tokenizer, theirs, max_length):
    tags = [0, 5, 0, 0, 1, 0, 7]
    row = {"words": WORDS, "tags": tags}
    (found,) = encode("conll04", row, tokenizer, max_length)
    want = theirs(
        WORDS, is_split_into_words=True, truncation=True, max_length=max_length
    )
    assert found.tokens == want["input_ids"]
    assert found.segments == want["token_type_ids"]
    labels, before = [], None
    for word in want.word_ids():
        first = word is not None and word != before
        labels.append(tags[word] + 1 if first else 0)
        before = word
    assert found.labels == labels


def test_the_predicate_is_the_second_text(tokenizer, theirs):
    row = {"words": WORDS, "tags": [1] * 7, "predicate": 1}
    (found,) = encode("conll05", row, tokenizer)
    want = theirs(WORDS, [WORDS[1]], is_split_into_words=True)
    assert found.tokens == want["input_ids"]
    assert found.segments == want["token_type_ids"]
    assert sum(label > 0 for label in found.labels) == 7
    # The predicate's own copy carries no tag.
    assert not any(np.array(found.labels)[np.array(found.segments) == 1])
    (short,) = encode("conll05", row, tokenizer, 9)
    assert len(short.tokens) == len(short.labels) == 9
    assert short.tokens[0] == tokenizer.cls_id
    assert short.tokens.count(tokenizer.sep_id) == 2


def test_a_word_that_leaves_no_piece_keeps_its_place(tokenizer):
    row = {"words": ["Oslo", "\u200b\ufffd", "wins"], "tags": [1, 3, 0]}
    (found,) = encode("conll04", row, tokenizer)
    assert found.tokens[2] == tokenizer.unk_id
    assert found.labels == [0, 2, 4, 1, 0]


CONTEXT = (
    "In the port of Zürich-by-the-sea (which does not exist), Ada Example "
    "sold 1,250 paper boats a year.  She did so until 1994, when the rain "
    "came and the boats sailed away."
)


def squad_row(answer, question="What did Ada Example sell?"):
    return {
        "context": CONTEXT,
        "question": question,
        "answers": [answer],
        "starts": [CONTEXT.index(answer)],
    }


@pytest.mark.parametrize("answer", ["1,250 paper boats", "1994", "Zürich"])
@pytest.mark.parametrize("max_length", [128, 28])
def test_windows_cover_the_context_and_find_the_answer(
    tokenizer, theirs, answer, max_length
):
    row = squad_row(answer)
    windows = encode("squad", row, tokenizer, max_length)
    question = theirs(row["question"])["input_ids"]
    whole = theirs(CONTEXT, return_offsets_mapping=True)
    offsets = whole["offset_mapping"][1:-1]
    seen, answered = [], 0
    for window in windows:
        assert window.tokens[: len(question)] == question
        assert len(window.tokens) <= max_length
        starts, ends = np.array(window.starts), np.array(window.ends)
        inside = np.array(window.segments) == 1
        inside[-1] = False
        np.testing.assert_array_equal(starts > 0, inside)
        pieces = list(zip(starts[inside] - 1, ends[inside] - 1, strict=True))
        at = offsets.index(pieces[0])
        assert offsets[at : at + len(pieces)] == pieces
        ids = np.array(window.tokens)[inside].tolist()
        assert ids == whole["input_ids"][1:-1][at : at + len(pieces)]
        seen.append((at, at + len(pieces)))
        first, last = window.labels
        if first:
            answered += 1
            assert CONTEXT[starts[first] - 1 : ends[last] - 1] == answer
        else:
            assert last == 0
    assert answered >= 1
    assert seen[0][0] == 0
    assert seen[-1][1] == len(offsets)
    for (_, end), (begin, _) in zip(seen, seen[1:], strict=False):
        assert begin < end  # windows overlap
    assert len(windows) == 1 if max_length == 128 else len(windows) > 3


def test_a_long_question_is_cut(tokenizer):
    row = squad_row("1994", question="why " * 200)
    windows = encode("squad", row, tokenizer, 40)
    assert all(len(window.tokens) <= 40 for window in windows)
    assert sum(window.labels != [0, 0] for window in windows) >= 1


def test_a_candidate_is_a_row(tokenizer, theirs):
    row = {
        "premise": "The lake froze.",
        "question": "cause",
        "choice1": "It was cold.",
        "choice2": "Fish sang.",
        "label": 1,
    }
    found = encode("copa", row, tokenizer)
    for one, choice in zip(found, ("choice1", "choice2"), strict=True):
        want = theirs("The lake froze. because", row[choice])
        assert one.tokens == want["input_ids"]
        assert one.segments == want["token_type_ids"]
    assert [one.labels for one in found] == [[False], [True]]


def test_record_fills_the_gap_with_each_entity(tokenizer, theirs):
    row = {
        "passage": "Ana met Bo.\n@highlight\nBo wrote\n@highlight\nAna left",
        "query": "Later @placeholder sailed with @placeholder's cat.",
        "entities": ["Ana", "Bo"],
        "answers": ["Bo"],
    }
    found = encode("record", row, tokenizer)
    for one, name in zip(found, ("Ana", "Bo"), strict=True):
        want = theirs(
            "Ana met Bo. Bo wrote. Ana left",
            f"Later {name} sailed with {name}'s cat.",
        )
        assert one.tokens == want["input_ids"]
    assert [one.labels for one in found] == [[False], [True]]


def test_own_tasks_are_encoded_by_their_templates(tokenizer, theirs):
    spec = dataclasses.replace(
        specs.get("cb"), name="mine", text_a="{hypothesis}? {premise}"
    )
    row = {"premise": "a b", "hypothesis": "c {d}", "label": 2}
    ((found,),) = encoding.encode(
        dataclasses.replace(spec, text_b=None),
        [row],
        tokenizer=tokenizer,
        max_length=64,
    )
    assert found.tokens == theirs("c {d}? a b")["input_ids"]
    assert found.labels == [2]
