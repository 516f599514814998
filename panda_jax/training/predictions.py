"""A stored prompt's answers to new rows, whose right answers nobody knows."""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.data import answers, plain
from panda_jax.data.examples import AnyExamples, TextExamples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import UserError
from panda_jax.io import ownership
from panda_jax.io.files import PathLike, write_text
from panda_jax.step.fleet import Lanes
from panda_jax.step.steps import Trainable
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import StoredPrompt
from panda_jax.tasks import submissions, unanswered
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import TaskSpec
from panda_jax.training import evaluation

FILE = "predictions.jsonl"
FORMATS = ("jsonl", "csv", "submission")
# Texts that T5 writes, in pieces; tags name every span of a sentence.
_WRITTEN = {"tags": 256}
_MOST_WRITTEN = 62


def predict(
    prompt: PathLike | StoredPrompt,
    rows: Any,
    *,
    task: str | None = None,
    backbone: Backbone | str | None = None,
    max_length: int | None = None,
    input_format: str | None = None,
    text: Sequence[str] | str | None = None,
    keep_fields: bool = False,
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Answers to rows, one each, in their order.

    Args:
      prompt: a prompt, or the folder of one (or of its run).
      rows: with the task's text fields (`panda-jax tasks --task=T` names
        them; of kind tags `words`, of spans `question` and `context`, of
        choices the candidates), in memory, as a list, a pandas or a datasets
        table; or a file's path: CSV, TSV, JSON lines, JSON, Parquet, or the
        layout of the task's own files; `-` is stdin. Labels, where there are
        any, are not looked at.
      task: by default the prompt's own.
      backbone: loaded, or an id; by default the one the prompt names.
      max_length: of the text, in pieces; None for the prompt's own.
      input_format: of a file: csv, tsv, jsonl, json, parquet, or conll. By
        default what its ending says, else what it looks like.
      text: the rows' names of the fields that the task asks for, in their
        order, where they are others; column numbers, from 0, of files without
        a header.
      keep_fields: whether a row's fields stand beside its answer.
      tell: is told in a sentence what was guessed of a file.

    Returns:
      A row's `idx`, `index` or `id`, or else `row`, its number from 0; and
      `"prediction"`: a class name (with `"probabilities"` of all), a score, a
      candidate, an answer's text, or a tag a word.

    Raises:
      UserError: no row, or one that lacks a field or is none of the task's;
        else as `evaluate`.
    """
    stored, backbone, spec, found = evaluation.bound(prompt, task, backbone)
    asked = unanswered.read(
        spec, rows, format=input_format, text=text, tell=tell
    )
    heads = [_head(each, keep_fields) for each in asked]
    length = evaluation.fitting_length(max_length, stored, backbone)
    examples = _read(spec, [each.row for each in asked], backbone, length)
    lane = jax.tree.map(lambda x: jnp.asarray(x)[None], found)
    (outputs,) = evaluation.fleet_outputs(
        backbone,
        Trainable(lane),
        backbone.params,
        examples,
        lanes=Lanes(),
        spec=spec,
    )
    if isinstance(examples, TextExamples):
        said = evaluation.text_answers(backbone, spec, examples, outputs)
    else:
        said = answers.predictions(spec, examples, outputs)
    if spec.labels and spec.kind != "tags":
        said = [spec.labels[answer] for answer in said]
    answered = [
        {**head, "prediction": answer}
        for head, answer in zip(heads, said, strict=True)
    ]
    if not spec.labels or spec.kind in ("tags", "choice"):
        return answered
    shares = np.asarray(jax.nn.softmax(outputs, axis=-1), float)
    return [
        {**each, "probabilities": dict(zip(spec.labels, row, strict=True))}
        for each, row in zip(answered, shares.round(6).tolist(), strict=True)
    ]


def _head(asked: unanswered.Asked, keep_fields: bool) -> dict[str, Any]:
    """What stands before a row's answer."""
    if not keep_fields:
        return asked.key
    for name in ("prediction", "probabilities"):
        if name in asked.fields:
            raise UserError(
                f"The rows have a field {name!r}, which is what an answer is "
                "called: leave --keep_fields out, or call it otherwise."
            )
    fields = unanswered.plain(asked.fields)
    numbered = unanswered.NUMBER in asked.key  # rows may have such a field
    return {**asked.key, **fields, **({} if numbered else asked.key)}


def file_name(format: str, task: str) -> str:
    """What a file of answers is called where nobody says.

    Raises:
      UserError: there is no submission of the task.
    """
    if format == "submission":
        return submissions.file_name(task)
    return f"predictions.{format}"


def written(
    found: Sequence[Mapping[str, Any]],
    format: str = "jsonl",
    *,
    task: str | None = None,
) -> str:
    """Answers as a file has them.

    Args:
      found: as `predict` answers.
      format: `jsonl`, an object a row; `csv`, a row under names, in which
        parts are `name.part`, lists of tags are one text and other lists JSON;
        or `submission`, as the task's benchmark takes them.
      task: of a submission.

    Raises:
      UserError: there is no such format, or no submission of the task.
    """
    if format == "submission" and task is not None:
        return submissions.text(task, found)
    if format == "jsonl":
        lines = (json.dumps(each, ensure_ascii=False) for each in found)
        return "".join(f"{line}\n" for line in lines)
    if format != "csv":
        raise UserError(
            f"format is {format!r}, expected {' or '.join(FORMATS)} (of which "
            "the last needs the task)."
        )
    rows = [_flat(each) for each in found]
    names = dict.fromkeys(name for row in rows for name in row)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Cells of a table: parts under `name.part`, lists as texts."""
    found: dict[str, Any] = {}
    for name, part in value.items():
        name = f"{prefix}{name}"
        if isinstance(part, Mapping):
            found |= _flat(part, f"{name}.")
        elif not isinstance(part, list):
            found[name] = part
        elif name == "prediction":
            found[name] = " ".join(part)
        else:
            found[name] = json.dumps(part, ensure_ascii=False)
    return found


def write_predictions(
    out_dir: PathLike,
    found: Sequence[Mapping[str, Any]],
    *,
    name: str = FILE,
    format: str = "jsonl",
    task: str | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes `predictions.jsonl`, whose n-th line answers the n-th row.

    Args:
      out_dir: the folder.
      found: as `predict` answers.
      name: of the file, where it is another.
      format: of it; see `written`.
      task: of a submission.
      overwrite: replace a file of this name that is none of ours.

    Raises:
      UserError: a file of this name is there that is none of ours (but for
        `overwrite`); else as `written`.
    """
    text = written(found, format, task=task)
    with ownership.writing(out_dir, "predict", overwrite=overwrite) as new:
        write_text(new / name, text)
    return pathlib.Path(out_dir) / name


def _read(
    spec: TaskSpec, rows: list[Row], backbone: Backbone, max_length: int
) -> AnyExamples:
    """The rows as the backbone's family reads them."""
    tokenizer = backbone.tokenizer
    if isinstance(tokenizer, TextTokenizer):
        found = plain.text_examples(
            spec,
            rows,
            tokenizer=tokenizer,
            input_length=max_length,
            target_length=_WRITTEN.get(spec.kind, _MOST_WRITTEN),
            answered=False,
        )
    else:
        found = plain.examples(
            spec, rows, tokenizer=tokenizer, max_length=max_length
        )
    longest = found.tokens.shape[1]
    return found.widened(evaluation.bucket(longest, max_length))
