"""What a task is: a value, in plain Python."""

import dataclasses
import hashlib
import json
import string
from collections.abc import Mapping
from typing import Literal

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a task is: where its rows lie, what they say, how it is scored.

    Attributes:
      name: the task id, also its name in the SeqIO registry.
      kind: `"classification"` or `"regression"`.
      description: one or two sentences for people.
      text_a: template of the first text over the row's fields, e.g.
        `"{premise}"`; its field names are also TFDS's.
      text_b: template of the second text, None for one-text tasks.
      labels: class names in the order of their ids; empty for regression.
      metrics: names in `panda_jax.metrics.METRICS`, the main one first.
      reader: which function of `tasks.readers` reads the files.
      files: split -> files under the data folder, read one after another.
      columns: field -> JSON key, header name or column number (from 0) in
        the files, where it is not the field's own name.
      width: columns a row must have, for files without a header.
      label_values: label as the files write it -> class name, where the
        files do not write the class name itself.
      score_range: lowest and highest score, for regression.
      tfds: data set in TFDS, e.g. `"super_glue/cb"`.
      target: whether it is one of the paper's nine targets.
    """

    name: str
    kind: Literal["classification", "regression"] = "classification"
    description: str
    text_a: str
    text_b: str | None = None
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    reader: Literal["jsonl", "tsv", "tsv_plain", "offline"]
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )
    columns: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    width: int = 0
    label_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_range: tuple[float, float] = (0.0, 0.0)
    tfds: str = ""
    target: bool = False

    @property
    def offline(self) -> bool:
        """Whether the rows are generated, without any file."""
        return self.reader == "offline"

    @property
    def fields(self) -> tuple[str, ...]:
        """The text fields of a row, in the order of the templates."""
        template = self.text_a + (self.text_b or "")
        parts = string.Formatter().parse(template)
        return tuple(dict.fromkeys(name for _, name, _, _ in parts if name))

    @property
    def outputs(self) -> int:
        """C: the number of classes, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def fingerprint(self) -> str:
        """Short sha256 of everything that decides what a row becomes."""
        fields = dataclasses.asdict(self)
        del fields["description"], fields["metrics"], fields["target"]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
