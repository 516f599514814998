"""Formats with several rows in one JSON value."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from panda_jax.tasks.readers_flat import File, Found, json_lines, text
from panda_jax.tasks.rows import Place
from panda_jax.tasks.spec import TaskSpec

from panda_jax.io.files import parse_json

T = TypeVar("T", dict, list, str, int)

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
}


def multirc(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """MultiRC: a paragraph a line, each answer to its questions a row."""
    for place, value in json_lines(paths):
        yield from paragraph_rows(place, value)


def paragraph_rows(place: Place, value: Mapping[str, Any]) -> Found:
    """A row for each answer to each question on a MultiRC paragraph."""
    passage = _part(place, value, "passage", dict)
    for question in _part(place, passage, "questions", list):
        ids = (
            _part(place, value, "idx", int),
            _part(place, question, "idx", int),
        )
        for answer in _part(place, question, "answers", list):
            said = _part(place, answer, "text", str)
            names = ("paragraph", "question", "answer")
            yield (
                place,
                {
                    "paragraph": _part(place, passage, "text", str),
                    "question": _part(place, question, "question", str),
                    "answer": said,
                    "label": answer.get("label"),
                    "question_id": "{}-{}".format(*ids),
                    "idx": dict(
                        zip(names, (*ids, answer.get("idx")), strict=True)
                    ),
                },
            )


def record(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """ReCoRD: a passage a line, each of its queries a row."""
    for place, value in json_lines(paths):
        yield from passage_rows(place, value)


def passage_rows(
    place: Place, value: Mapping[str, Any], *, answered: bool = True
) -> Found:
    """A row for each query on a ReCoRD passage."""
    passage = _part(place, value, "passage", dict)
    said = _part(place, passage, "text", str)
    entities = []
    for entity in _part(place, passage, "entities", list):
        start = _part(place, entity, "start", int)
        last = _part(place, entity, "end", int)
        if not 0 <= start <= last < len(said):
            expected = (
                "0 <= start <= end, the last character's position, < "
                f"{len(said)}"
            )
            raise place.fault("entities", entity, expected)
        entities.append(said[start : last + 1])
    for query in _part(place, value, "qas", list):
        row = {
            "passage": said,
            "query": _part(place, query, "query", str),
            "entities": entities,
            "idx": query.get("idx"),
        }
        if answered:
            row["answers"] = [
                _part(place, answer, "text", str)
                for answer in _part(place, query, "answers", list)
            ]
        yield place, row


def squad(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """SQuAD 1.1: articles of paragraphs, each question a row."""
    for path in paths:
        # Faults above a question are told by the number of the next one.
        place = Place(str(path), 1, "question")
        yield from article_rows(place, json_file(path))


def article_rows(place: Place, value: Any, *, answered: bool = True) -> Found:
    """A row for each question of a SQuAD file, counted from `place` on."""
    for article in _part(place, value, "data", list):
        for paragraph in _part(place, article, "paragraphs", list):
            context = _part(place, paragraph, "context", str)
            for question in _part(place, paragraph, "qas", list):
                yield place, _question(place, context, question, answered)
                place = place._replace(line=place.line + 1)


def spert(spec: TaskSpec, paths: Sequence[File]) -> Found:
    """SpERT's: a list of sentences, words with entities beside them."""
    for path in paths:
        sentences = json_file(path)
        if not isinstance(sentences, list):
            got = type(sentences).__name__
            raise Place(str(path), 1).fault("(whole file)", got, "a JSON list")
        for number, sentence in enumerate(sentences, start=1):
            place = Place(str(path), number, "sentence")
            words = _part(place, sentence, "tokens", list)
            entities = _part(place, sentence, "entities", list)
            tags = _entity_tags(place, len(words), entities)
            yield place, {"words": words, "tags": tags}


def _question(
    place: Place, context: str, question: Any, answered: bool
) -> dict[str, Any]:
    row = {
        "question": _part(place, question, "question", str),
        "context": context,
        "id": question.get("id"),
    }
    if answered:
        answers = _part(place, question, "answers", list)
        row["answers"] = [_part(place, each, "text", str) for each in answers]
        row["starts"] = [
            _part(place, each, "answer_start", int) for each in answers
        ]
    return row


def _entity_tags(
    place: Place, length: int, entities: Sequence[Any]
) -> list[str]:
    tags = ["O"] * length
    for entity in entities:
        name = _part(place, entity, "type", str)
        start = _part(place, entity, "start", int)
        end = _part(place, entity, "end", int)
        if not 0 <= start < end <= length:
            expected = f"0 <= start < end <= {length}, the number of tokens"
            raise place.fault("entities", entity, expected)
        if any(tag != "O" for tag in tags[start:end]):
            expected = "an entity that overlaps no other"
            raise place.fault("entities", entity, expected)
        tags[start:end] = [f"B-{name}"] + [f"I-{name}"] * (end - start - 1)
    return tags


def json_file(path: File) -> Any:
    """The JSON value that a file is.

    Raises:
      UserError: it is none.
    """
    found = text(path)
    try:
        return parse_json(found)
    except json.JSONDecodeError as error:
        there = found[max(error.pos - 30, 0) : error.pos + 30]
        place = Place(str(path), error.lineno)
        raise place.fault("(whole file)", there, f"JSON ({error})") from None
    except ValueError as error:
        place = Place(str(path), 1)
        raise place.fault("(whole file)", found, f"JSON ({error})") from None


def _part(place: Place, whole: Any, key: str, kind: type[T]) -> T:
    """`whole[key]`, a value of `kind`."""
    if not isinstance(whole, dict) or key not in whole:
        expected = f"an object with the key {key!r}"
        raise place.fault(key, whole, expected)
    found = whole[key]
    if not isinstance(found, kind) or isinstance(found, bool):
        raise place.fault(key, found, _KINDS[kind])
    return found
