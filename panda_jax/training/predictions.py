"""A stored prompt's answers to new rows, whose right answers nobody knows."""

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax.data import answers
from panda_jax.data.examples import AnyExamples, Examples, TextExamples
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.io import ownership
from panda_jax.io.files import PathLike, write_text
from panda_jax.step.fleet import Lanes
from panda_jax.step.steps import Trainable
from panda_jax.store.backbones import Backbone
from panda_jax.store.prompt_folders import StoredPrompt
from panda_jax.tasks import encoding, own, views
from panda_jax.tasks.readers_flat import json_lines
from panda_jax.tasks.rows import Place, Row, checked
from panda_jax.tasks.spec import TaskSpec
from panda_jax.training import evaluation

FILE = "predictions.jsonl"
# Texts that T5 writes, in pieces; tags name every span of a sentence.
_WRITTEN = {"tags": 256}
_MOST_WRITTEN = 62


def predict(
    prompt: PathLike | StoredPrompt,
    rows: Iterable[Mapping[str, Any]] | PathLike,
    *,
    task: str | None = None,
    backbone: Backbone | str | None = None,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Answers to rows, one each, in their order.

    Args:
      prompt: a prompt, or the folder of one (or of its run).
      rows: with the task's text fields (`panda-jax tasks --task=T` names
        them; of kind tags `words`, of spans `question` and `context`, of
        choices the candidates), or a file with one such JSON object a line.
        Labels, where there are any, are not looked at.
      task: by default the prompt's own.
      backbone: loaded, or an id; by default the one the prompt names.
      max_length: of the text, in pieces; None for the prompt's own.

    Returns:
      `{"prediction": ...}` a row: a class name (with `"probabilities"` of all),
      a score, a candidate, an answer's text, or a tag a word.

    Raises:
      UserError: no row, or one that lacks a field or is none of the task's;
        else as `evaluate`.
    """
    stored, backbone, spec, found = evaluation.bound(prompt, task, backbone)
    given = _checked(spec, rows)
    length = evaluation.fitting_length(max_length, stored, backbone)
    examples = _read(spec, given, backbone, length)
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
    if not spec.labels or spec.kind == "tags":
        return [{"prediction": answer} for answer in said]
    named = [{"prediction": spec.labels[answer]} for answer in said]
    if spec.kind == "choice":
        return named
    shares = np.asarray(jax.nn.softmax(outputs, axis=-1), float)
    return [
        {**each, "probabilities": dict(zip(spec.labels, row, strict=True))}
        for each, row in zip(named, shares.round(6).tolist(), strict=True)
    ]


def write_predictions(
    out_dir: PathLike,
    found: Sequence[Mapping[str, Any]],
    *,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes `predictions.jsonl`, whose n-th line answers the n-th row.

    Raises:
      UserError: a file of this name is there that is none of ours (but for
        `overwrite`).
    """
    lines = (json.dumps(each, ensure_ascii=False) for each in found)
    with ownership.writing(out_dir, "predict", overwrite=overwrite) as new:
        write_text(new / FILE, "".join(f"{line}\n" for line in lines))
    return pathlib.Path(out_dir) / FILE


def _checked(
    spec: TaskSpec, rows: Iterable[Mapping[str, Any]] | PathLike
) -> list[Row]:
    """Rows as `TaskSpec` says, with answers that say nothing."""
    if isinstance(rows, str | os.PathLike):
        path = pathlib.Path(rows)
        if not path.is_file():
            raise UserError(
                f"The input {str(path)!r} is no file. Give one with a JSON "
                "object a line (--input=F.jsonl)."
            )
        found = list(json_lines([path]))
    else:
        found = [
            (Place("the rows", number, unit="row"), dict(row))
            for number, row in enumerate(rows, start=1)
        ]
    if not found:
        raise UserError("There is no row to answer.")
    return [
        checked(
            spec,
            place,
            own.raw_row(spec, place, raw, answered=False)
            if spec.reader == own.READER
            else raw,
            coded=False,
            answered=False,
        )
        for place, raw in found
    ]


def _read(
    spec: TaskSpec, rows: list[Row], backbone: Backbone, max_length: int
) -> AnyExamples:
    """The rows as the backbone's family reads them."""
    tokenizer = backbone.tokenizer
    references = json.dumps([views.reference(spec, row) for row in rows])
    if isinstance(tokenizer, TextTokenizer):
        inputs = [views.text_example(spec, row)[0] for row in rows]
        ids = [
            [*found[: max_length - 1], tokenizer.eos_id]
            for found in tokenizer.encode(inputs)
        ]
        most = _WRITTEN.get(spec.kind, _MOST_WRITTEN)
        targets = np.zeros((len(rows), most), np.int32)
        texts = TextExamples(_padded(ids), targets, references.encode())
        longest = texts.inputs.shape[1]
        return texts.widened(evaluation.bucket(longest, max_length))
    return _encoded(spec, rows, tokenizer, max_length, references.encode())


def _encoded(
    spec: TaskSpec,
    rows: list[Row],
    tokenizer: Tokenizer,
    max_length: int,
    references: bytes,
) -> Examples:
    encoding.check_length(spec, max_length)
    groups = encoding.encode(
        spec, rows, tokenizer=tokenizer, max_length=max_length
    )
    flat = list(itertools.chain.from_iterable(groups))
    labels = _padded([each.labels for each in flat])
    places = {}
    if spec.kind == "tags":
        labels = labels - 1
    elif spec.kind == "span":
        places = {
            "char_starts": _padded([each.starts for each in flat]),
            "char_ends": _padded([each.ends for each in flat]),
        }
    else:
        labels = labels[:, 0]
    examples = Examples(
        kind=spec.kind,
        tokens=_padded([each.tokens for each in flat]),
        segments=_padded([each.segments for each in flat]),
        labels=labels,
        question=np.repeat(
            np.arange(len(rows), dtype=np.int32), [len(x) for x in groups]
        ),
        references=references,
        **places,
    )
    longest = examples.tokens.shape[1]
    return examples.widened(evaluation.bucket(longest, max_length))


def _padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """[R, T] int32; T the longest, the others filled with 0."""
    longest = max(len(each) for each in lists)
    found = np.zeros((len(lists), longest), np.int32)
    for row, each in zip(found, lists, strict=True):
        row[: len(each)] = each
    return found
