"""What the tasks are and hold, for people: the verb `tasks`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.io import files
from panda_jax.tasks import encoding, sources, specs, views
from panda_jax.tasks.rows import Row
from panda_jax.tasks.spec import SPLITS, TaskSpec

# Fields that several rows may share.
_PASSAGES = ("paragraph", "passage", "context")
_SHOWN = 3


def list_tasks() -> list[dict[str, Any]]:
    """One dict a task: name, kind, outputs, metric, published rows, marks."""
    return [
        {
            "name": spec.name,
            "kind": spec.kind,
            "outputs": spec.outputs,
            "metric": spec.metric,
            "rows": dict(spec.rows),
            "source": spec.source,
            "target": spec.target,
            "offline": spec.offline,
            "description": spec.description,
        }
        for spec in map(specs.get, specs.names())
    ]


def table(tasks: Sequence[dict[str, Any]]) -> str:
    """What `list_tasks` found, a line a task."""
    lines = []
    for row in tasks:
        names = ("source", "target", "offline")
        marks = [name for name in names if row[name]]
        counts = "/".join(str(count) for count in row["rows"].values())
        lines.append(
            f"{row['name']:18s} {row['kind']:15s} {row['metric']:17s} "
            f"{counts:>14s}  {' '.join(marks)}"
        )
    return "\n".join(lines)


def describe(
    task: str,
    *,
    tokenizer: Tokenizer,
    text_tokenizer: TextTokenizer | None = None,
    max_length: int = 128,
    data_dir: files.PathLike | None = None,
    tfds_data_dir: files.PathLike | None = None,
) -> dict[str, Any]:
    """What a task is and holds, as plain values for printing or JSON.

    Args:
      task: the task id.
      tokenizer: of the encoder's view.
      text_tokenizer: of the text-to-text view; None for bytes.
      max_length: of the encoder's rows.
      data_dir: as in `load_examples`.
      tfds_data_dir: likewise.

    Returns:
      name, kind, description, target, metrics, labels, source (where the rows
      come from), encoder and text_to_text (the templates), features (name ->
      shape and dtype), and splits: split -> {examples, and what there is of
      questions, passages, labels (name -> count), scores (lowest, mean,
      highest)}; examples: three rows of the train split, decoded from their
      tokens: encoder (the texts of all token rows), input and target (from
      text to text), and answer.  Where the rows cannot be had without a
      download, `unavailable` says so instead of the last two.

    Raises:
      UserError: no such task, or its data folder is missing or malformed.
    """
    spec = specs.get(task)
    encoding.check_length(spec, max_length)
    source = sources.find(spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir)
    about: dict[str, Any] = {
        "name": spec.name,
        "kind": spec.kind,
        "description": spec.description,
        "target": spec.target,
        "metrics": list(spec.metrics),
        "labels": list(spec.labels),
        "source": str(source),
        "encoder": [text for text in (spec.text_a, spec.text_b) if text],
        "text_to_text": views.input_template(spec),
        "features": _features(spec, max_length),
    }
    if source.fingerprint("train") is None:
        about["unavailable"] = (
            f"Not prepared: {source}. Give the data set's own files by "
            "--data_dir (or PANDA_DATA_DIR)"
            + ("; training would download it." if spec.tfds else ".")
        )
        return about
    rows = {split: source.rows(split) for split in SPLITS}
    about["splits"] = {
        split: summary(spec, rows[split])
        | ({"published": spec.rows[split]} if split in spec.rows else {})
        for split in SPLITS
    }
    about["examples"] = _examples(
        spec,
        rows["train"][:_SHOWN],
        tokenizer=tokenizer,
        text_tokenizer=text_tokenizer or TextTokenizer.of_bytes(),
        max_length=max_length,
    )
    return about


def summary(spec: TaskSpec, rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of a split's rows, labels, groups and passages."""
    counts: dict[str, Any] = {"examples": len(rows)}
    if spec.group:
        counts["questions"] = len({row[spec.group] for row in rows})
    for field in _PASSAGES:
        if field in spec.fields:
            counts["passages"] = len({row[field] for row in rows})
    if spec.kind == "regression":
        values = [row["label"] for row in rows]
        scores = (min(values), sum(values) / len(values), max(values))
        counts["scores"] = [round(score, 3) for score in scores]
    elif spec.kind == "tags":
        # The B- tag of type i has the id 2 i + 1.
        found = Counter(
            spec.labels[tag // 2]
            for row in rows
            for tag in row["tags"]
            if tag % 2
        )
        counts["words"] = sum(len(row["words"]) for row in rows)
        counts["labels"] = {x: found[x] for x in spec.labels if found[x]}
    elif spec.labels:
        found = Counter(spec.labels[row["label"]] for row in rows)
        counts["labels"] = {name: found[name] for name in spec.labels}
    else:
        counts["answers"] = sum(len(row["answers"]) for row in rows)
    return counts


def _features(spec: TaskSpec, max_length: int) -> dict[str, str]:
    number = "float32" if spec.kind == "regression" else "int32"
    label = {"tags": f"[{max_length}]", "span": "[2]"}.get(spec.kind, "[]")
    return {
        "encoder_input_tokens": f"[{max_length}] int32",
        "encoder_segment_ids": f"[{max_length}] int32",
        "labels": f"{label} {number}",
    }


def _examples(
    spec: TaskSpec,
    rows: Sequence[Row],
    *,
    tokenizer: Tokenizer,
    text_tokenizer: TextTokenizer,
    max_length: int,
) -> list[dict[str, Any]]:
    encoded = encoding.encode(
        spec, rows, tokenizer=tokenizer, max_length=max_length
    )
    found = []
    for row, group in zip(rows, encoded, strict=True):
        texts = text_tokenizer.encode(views.text_example(spec, row))
        said, answer = (text_tokenizer.decode(ids) for ids in texts)
        found.append(
            {
                "encoder": [tokenizer.decode(one.tokens) for one in group],
                "input": said,
                "target": answer,
                "answer": views.shown(spec, views.reference(spec, row)),
            }
        )
    return found


def markdown(task: str | None = None, **options: Any) -> str:
    """A page of one task or all, with an example where the data is at hand.

    Args:
      task: task id; None for all.
      **options: of `describe`.
    """
    lines = [
        "# Tasks",
        "",
        "Written by `panda-jax tasks --markdown=FILE --data_dir=DATA`. An "
        "example is the first training row of DATA, decoded from its tokens; "
        "kinds and features are explained in `tasks/spec.py`.",
        "",
        "| task | kind | metric | train | validation | | TFDS |",
        "|---|---|---|---|---|---|---|",
    ]
    chosen = [specs.get(name) for name in ([task] if task else specs.names())]
    for spec in chosen:
        marks = [name for name in ("source", "target") if getattr(spec, name)]
        marks += ["built in"] if spec.offline else []
        counts = " | ".join(str(spec.rows.get(split, "")) for split in SPLITS)
        lines.append(
            f"| [{spec.name}](#{spec.name}) | {spec.kind} | {spec.metric} | "
            f"{counts} | {', '.join(marks)} | {spec.tfds} |"
        )
    for spec in chosen:
        lines += ["", *_section(spec, describe(spec.name, **options))]
    return "\n".join(lines) + "\n"


def _section(spec: TaskSpec, about: dict[str, Any]) -> list[str]:
    lines = [f"## {spec.name}", "", spec.description, ""]
    names = [name for names in spec.files.values() for name in names]
    if names:
        lines += [f"Files: {', '.join(f'`{name}`' for name in names)}.", ""]
    lines += [f"Metrics: {', '.join(spec.metrics)}.", ""]
    if "unavailable" in about:
        return [*lines, about["unavailable"]]
    example = about["examples"][0]
    return [
        *lines,
        "```",
        *(f"encoder  {text}" for text in example["encoder"]),
        f"input    {example['input']}",
        f"target   {example['target']}",
        "```",
    ]
