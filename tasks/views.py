"""The two ways to pose a row: to an encoder, and from text to text.

In plain Python.  A row is as `tasks.spec` says; what a right answer is, is
the same in both views, so that both are scored by the same metrics.
"""

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import TaskSpec

from panda_jax.data.task_metrics import Grouped, tag_spans

# What a text-to-text answer says where no words are tagged.
NOTHING = "none"
# No label, where a text is none of a task's label words.
UNKNOWN = -1
# Nor score, where it is no number; as in T5.
_NO_SCORE = -1.0
# A text as a model can write it: vocabularies lack characters, and then the
# best there is differs from the text. `TextTokenizer.written` is one.
Written = Callable[[str], str]
# What is left of a row to judge an answer by; the rest stays behind.
_REFERENCE = (
    "label",
    "entities",
    "words",
    "tags",
    "predicate",
    "context",
    "answers",
)


# --- the encoder's view ------------------------------------------------------


def encoder_texts(spec: TaskSpec, row: Row) -> list[tuple[str, str | None]]:
    """The texts of a row: one pair, or one a candidate of kind choice."""
    said = {
        field: spec.spoken[field][str(row[field])]
        if field in spec.spoken
        else _readable(spec, str(row[field]))
        for field in spec.fields
    }
    texts = []
    for choice in candidates(spec, row) or [""]:
        values = {**said, "choice": choice}
        a, b = (
            template and template.format_map(values)
            for template in (spec.text_a, spec.text_b)
        )
        if spec.placeholder and b:
            b = b.replace(spec.placeholder, choice)
        texts.append((a or "", b))
    return texts


def candidates(spec: TaskSpec, row: Row) -> list[str]:
    """The texts to choose from; none where the task has no choices."""
    if spec.listed_choices:
        return list(row[spec.choices[0]])
    return [row[field] for field in spec.choices]


def right_candidates(spec: TaskSpec, row: Row) -> list[bool]:
    """For each candidate whether it is a right one."""
    texts = candidates(spec, row)
    if spec.listed_choices:
        return [text in row["answers"] for text in texts]
    return [i == row["label"] for i in range(len(texts))]


def fewer_candidates(spec: TaskSpec, row: Row) -> Row:
    """A training row with `train_choices` candidates at most.

    The right ones stay; the others are drawn by the row's own text, so the
    same row always keeps the same ones.
    """
    if not spec.listed_choices or not spec.train_choices:
        return row
    field = spec.choices[0]
    right = set(row["answers"])
    wrong = [text for text in row[field] if text not in right]
    room = max(spec.train_choices - len(right), 1)
    kept = set(wrong)
    if len(wrong) > room:
        # Python's generator promises a stable stream.
        kept = set(random.Random(json.dumps(row)).sample(wrong, room))
    return row | {field: [x for x in row[field] if x in right | kept]}


def _readable(spec: TaskSpec, text: str) -> str:
    """ReCoRD's passages end in highlights under a mark: plain sentences."""
    if not spec.placeholder:
        return text
    text = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text)
    return text.replace("\n@highlight\n", ". ")


# --- the text-to-text view ---------------------------------------------------


def input_template(spec: TaskSpec) -> str:
    """The template of the input: the task's own, or all its fields, as T5's."""
    named = (f"{field}: {{{field}}}" for field in sorted(spec.fields))
    return spec.text_input or " ".join([spec.name, *named])


def text_example(spec: TaskSpec, row: Row) -> tuple[str, str]:
    """The input and the target of a row, as texts."""
    values: dict[str, str] = {
        field: _readable(spec, str(row[field])) for field in spec.fields
    }
    if spec.listed_choices:
        values[spec.choices[0]] = ", ".join(candidates(spec, row))
    if spec.kind == "tags":
        values["words"] = _marked_words(spec, row)
    text = input_template(spec).format_map(values)
    return " ".join(text.split()), " ".join(_target_text(spec, row).split())


def _marked_words(spec: TaskSpec, row: Row) -> str:
    """The sentence, with asterisks around the predicate."""
    words = list(row["words"])
    if spec.has_predicate:
        at = row["predicate"]
        words[at] = f"* {words[at]} *"
    return " ".join(words)


def _target_text(spec: TaskSpec, row: Row) -> str:
    if spec.kind == "regression":
        # T5's targets are the scores rounded to the nearest fifth.
        return f"{round(row['label'] * 5) / 5:.1f}"
    if spec.kind == "span" or spec.listed_choices:
        return row["answers"][0]
    if spec.kind == "tags":
        return _spans_text(row["words"], tag_names(spec, row["tags"]))
    return spec.labels[row["label"]]


def tag_names(spec: TaskSpec, tags: Sequence[int]) -> list[str]:
    """The names of tag ids."""
    names = spec.tag_names
    return [names[tag] for tag in tags]


def _spans_text(words: Sequence[str], tags: Sequence[str]) -> str:
    """`"Loc: New York ; Peop: Smith"`, in the order of the words."""
    parts = [
        f"{kind}: {' '.join(words[start:end])}"
        for kind, start, end in tag_spans(tags)
    ]
    return " ; ".join(parts) or NOTHING


def answer_from_text(
    spec: TaskSpec, text: str, reference: Row, written: Written = str
) -> Any:
    """A prediction, as `target` has it, from a text that a model wrote.

    Args:
      spec: the task.
      text: the decoded output.
      reference: as made by `reference`.
      written: texts as the model's vocabulary writes them.

    Returns:
      A class id (`UNKNOWN` for a text that is no label word), a score (-1.0
      for a text that is no number, as in T5), an answer's text, or tag names.
    """
    text = " ".join(text.split())
    if spec.kind == "regression":
        try:
            score = float(text)
        except ValueError:
            return _NO_SCORE
        return score if math.isfinite(score) else _NO_SCORE
    if spec.kind == "span" or spec.listed_choices:
        return text
    if spec.kind == "tags":
        return _tags_from_text(spec, text, reference["words"], written)
    labels = [_spaced(written(label)) for label in spec.labels]
    return labels.index(text) if text in labels else UNKNOWN


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _tags_from_text(
    spec: TaskSpec, text: str, words: Sequence[str], written: Written
) -> list[str]:
    """Tags of the words that a text names, each found after the last one.

    What is not in the sentence, or of no known type, is passed over.
    """
    tags = ["O"] * len(words)
    # A word may become several, where characters of it are not known.
    known = [written(word).split() for word in words]
    begin = 0
    for part in text.split(" ; "):
        kind, _, said = part.strip().partition(": ")
        named = said.split()
        if kind not in spec.labels or not named:
            continue
        for at in range(begin, len(words)):
            size = _words_that_say(known[at:], named)
            if size:
                tags[at] = f"B-{kind}"
                tags[at + 1 : at + size] = [f"I-{kind}"] * (size - 1)
                begin = at + size
                break
    return tags


def _words_that_say(words: Sequence[list[str]], named: list[str]) -> int:
    """How many words, from the first on, are written as `named`; 0 for none."""
    said: list[str] = []
    for count, word in enumerate(words, start=1):
        said += word
        if said == named:
            return count
        if said != named[: len(said)]:
            break
    return 0


# --- what both are judged by -------------------------------------------------


def reference(spec: TaskSpec, row: Row) -> Row:
    """What must be known of a row to judge an answer; JSON can hold it."""
    kept = [*_REFERENCE, *([spec.group] if spec.group else [])]
    return {name: row[name] for name in kept if name in row}


def text_target(spec: TaskSpec, reference: Row, written: Written = str) -> Any:
    """The right answer as the text-to-text view can say it.

    As `target`, but tags are what the target text says of the sentence: which
    of two equal words is meant, a text cannot tell; and texts are as the
    model's vocabulary writes them.
    """
    if spec.kind == "tags":
        said = _spaced(written(shown(spec, reference)))
        return _tags_from_text(spec, said, reference["words"], written)
    found = target(spec, reference)
    if spec.kind == "span" or spec.listed_choices:
        return [_spaced(written(text)) for text in found]
    return found


def target(spec: TaskSpec, reference: Mapping[str, Any]) -> Any:
    """The right answer: what `panda_jax.data.task_metrics` takes as a target.

    A class id (with its question where the task has such groups), a score,
    the list of accepted texts, or tag names.
    """
    if spec.kind == "span" or spec.listed_choices:
        return reference["answers"]
    if spec.kind == "tags":
        return tag_names(spec, reference["tags"])
    if spec.group:
        return Grouped(reference[spec.group], reference["label"])
    return reference["label"]


def shown(spec: TaskSpec, reference: Mapping[str, Any]) -> str:
    """The right answer as people read it."""
    if spec.kind == "regression":
        return f"{reference['label']:g}"
    if spec.kind == "span" or spec.listed_choices:
        return " | ".join(reference["answers"])
    if spec.kind == "tags":
        tags = tag_names(spec, reference["tags"])
        return _spans_text(reference["words"], tags)
    return spec.labels[reference["label"]]
