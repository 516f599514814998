"""Answers as the servers of SuperGLUE, GLUE and SQuAD take them.

The layouts are those of the benchmarks' own tools: SuperGLUE's a JSON object a
line, named by `idx`; GLUE's `index` and `prediction` with a tab between;
SQuAD's one object of ids and texts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from panda_jax.tasks import specs
from panda_jax.tasks.spec import TaskSpec
from panda_jax.tasks.unanswered import NUMBER

from panda_jax.errors import UserError

Answers = Sequence[Mapping[str, Any]]

_SUPER_GLUE = {
    "boolq": "BoolQ",
    "cb": "CB",
    "copa": "COPA",
    "multirc": "MultiRC",
    "record": "ReCoRD",
    "rte": "RTE",
    "wic": "WiC",
    "wsc": "WSC",
}
_GLUE = {
    "cola": "CoLA",
    "mnli": "MNLI-m",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "sst2": "SST-2",
    "stsb": "STS-B",
}
_SQUAD = "squad"
FILES = {
    **{task: f"{name}.jsonl" for task, name in _SUPER_GLUE.items()},
    **{task: f"{name}.tsv" for task, name in _GLUE.items()},
    _SQUAD: "predictions.json",
}


def file_name(task: str) -> str:
    """What the server calls the file of a task.

    Raises:
      UserError: no server takes the task's answers.
    """
    specs.get(task)
    if task not in FILES:
        raise UserError(
            f"Task {task!r} has no form of a submission, expected one of "
            f"{', '.join(FILES)}. Give --format=jsonl or csv."
        )
    return FILES[task]


def text(task: str, found: Answers) -> str:
    """The file of a task's answers.

    Args:
      task: task id.
      found: as `predict` answers: the row's key, and `prediction`.

    Raises:
      UserError: no server takes the task's answers, or a row lacks an id as
        its files have it, or has another row's.
    """
    file_name(task)
    spec = specs.get(task)
    if task in _GLUE:
        return _table(spec, found)
    if task == _SQUAD:
        return _texts(spec, found)
    if spec.reader == "multirc":
        return _paragraphs(spec, found)
    lines = (
        {"idx": number, "label": _label(spec, each["prediction"])}
        for number, each in zip(_numbers(spec, found), found, strict=True)
    )
    return "".join(f"{json.dumps(x, ensure_ascii=False)}\n" for x in lines)


def _label(spec: TaskSpec, answer: Any) -> Any:
    """An answer as SuperGLUE's own tools write it."""
    if spec.listed_choices:
        return answer
    if spec.kind == "choice":
        return spec.labels.index(answer)
    if spec.name == "wsc":  # in capitals there, unlike the others
        return answer
    return answer.lower() if answer in ("True", "False") else answer


def _numbers(spec: TaskSpec, found: Answers) -> list[int]:
    """Each row's `idx`; where no row has one their number, from 0."""
    numbers = []
    for row, number in enumerate(_keys(found, "idx")):
        if isinstance(number, Mapping):  # as `datasets` has ReCoRD's
            number = number.get("query")
        numbers.append(_whole(spec, "idx", row, number))
    _check_once(spec, "idx", numbers)
    return numbers


def _keys(found: Answers, *names: str) -> list[Any]:
    """What rows are known by: the first field that one has, else numbers."""
    for name in (*names, NUMBER):
        if any(name in each for each in found):
            return [each.get(name) for each in found]
    return [None] * len(found)


def _whole(spec: TaskSpec, name: str, row: int, value: Any) -> int:
    """A number, which tables spell."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(
            f"A submission for {spec.name!r} needs the field {name!r} of each "
            f"row, a whole number as its files have it; row {row + 1} has "
            f"{value!r}."
        )
    return value


def _check_once(spec: TaskSpec, name: str, keys: Sequence[Any]) -> None:
    seen: dict[Any, int] = {}
    for row, key in enumerate(keys, start=1):
        if key in seen:
            raise UserError(
                f"A submission for {spec.name!r} answers each {name!r} once; "
                f"rows {seen[key]} and {row} have {key!r}."
            )
        seen[key] = row


def _paragraphs(spec: TaskSpec, found: Answers) -> str:
    """MultiRC's: answers within questions within paragraphs."""
    parts = ("paragraph", "question", "answer")
    keys = []
    for row, each in enumerate(found):
        index = each.get("idx")
        given = index if isinstance(index, Mapping) else {}
        keys.append(
            tuple(_whole(spec, f"idx.{x}", row, given.get(x)) for x in parts)
        )
    _check_once(spec, "idx", keys)
    grouped: dict[int, dict[int, list[dict[str, int]]]] = {}
    for (paragraph, question, answer), each in zip(keys, found, strict=True):
        label = spec.labels.index(each["prediction"])
        questions = grouped.setdefault(paragraph, {})
        questions.setdefault(question, []).append(
            {"idx": answer, "label": label}
        )
    lines = (
        {
            "idx": paragraph,
            "passage": {
                "questions": [
                    {"idx": question, "answers": answers}
                    for question, answers in questions.items()
                ]
            },
        }
        for paragraph, questions in grouped.items()
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def _table(spec: TaskSpec, found: Answers) -> str:
    """GLUE's: the labels as its files write them, scores within bounds."""
    codes = {name: code for code, name in spec.label_values.items()}
    keys, lines = [], ["index\tprediction"]
    given = _keys(found, "index", "id", "idx")
    for row, (key, each) in enumerate(zip(given, found, strict=True)):
        keys.append(_whole(spec, "index", row, key))
        said = each["prediction"]
        if spec.kind == "regression":
            low, high = spec.score_range
            said = f"{min(max(said, low), high):.3f}"
        lines.append(f"{keys[-1]}\t{codes.get(said, said)}")
    _check_once(spec, "index", keys)
    return "\n".join(lines) + "\n"


def _texts(spec: TaskSpec, found: Answers) -> str:
    """SQuAD's: id -> text."""
    for row, each in enumerate(found, start=1):
        if not isinstance(each.get("id"), str | int):
            raise UserError(
                f"A submission for {spec.name!r} needs the field 'id' of each "
                f"row; row {row} has none."
            )
    keys = [str(each["id"]) for each in found]
    _check_once(spec, "id", keys)
    said = (each["prediction"] for each in found)
    answers = dict(zip(keys, said, strict=True))
    return json.dumps(answers, ensure_ascii=False) + "\n"
