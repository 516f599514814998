"""What a task is: a value, in plain Python."""

import dataclasses
import functools
import hashlib
import json
import string
from collections.abc import Mapping
from typing import Literal

SPLITS = ("train", "validation")
# Of which some tasks have the last.
ALL_SPLITS = (*SPLITS, "test")
_LATER = ("pointed",)
Kind = Literal["classification", "regression", "choice", "tags", "span"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What a task is: where its rows lie, what they say, how it is scored.

    A row has text fields, named as in TFDS where TFDS has the data set, and
    its answer, by `kind`:

    * classification: `label`, a class id; regression: `label`, a float.
    * choice: the candidates are the texts of the fields `choices`, and `label`
      is the right one's id; or they are the list in the one field `choices`,
      and `answers` is the list of those that are right.
    * tags: `words` and `tags`, equally long; tags are ids of `tag_names`, and
      `predicate` is a position in `words` where the task has one.
    * span: `context`, `answers` (texts) and `starts` (character positions).

    Attributes:
      name: the task id, also its name in the SeqIO registry.
      kind: of the answer, and so of the head.
      description: one or two sentences for people.
      text_a: template of the encoder's first text over the row's fields, e.g.
        `"{premise}"`; `{choice}` is a candidate.
      text_b: template of the second text, None for one-text tasks.
      text_input: template of the text-to-text input; by default `name` and
        every field with its text, in alphabetical order, as in T5.
      spoken: field -> what its values are in the encoder's texts; no other
        values are allowed.
      pointed: a text field, the field of a span in it, and the field of the
        span's position in words split at blanks, from 0: the text is shown
        with asterisks around the span, which it may hold several times.
      choices: of kind choice: the fields of the candidates, or the one field
        that lists them.
      placeholder: of kind choice: the text in `text_b` that stands for the
        candidate.
      train_choices: of kind choice: at most so many candidates of a training
        row are kept, the right ones always; 0 for all.
      labels: class names in the order of their ids; of kind tags the types of
        spans; empty for regression, spans and listed choices.
      metrics: names in `panda_jax.data.task_metrics.METRICS`, the main first.
      reader: which of `tasks.readers.READERS` reads the files.
      files: split -> files under the data folder, read one after another;
        `test` where the data set's authors ship one with its answers.
        `a|b` is the first that exists; `*` and `**` match as in `glob`.
      columns: field -> JSON key (`a.b` is key b of the object a), header name
        or column number (from 0) in the files, where it is not the field's
        own name.
      width: columns a row must have, for files without a header.
      lenient: the published files are known to hold a few rows with columns
        or texts missing: the first are left out, the second kept, as in TFDS.
      label_values: label as the files write it -> class name, where the
        files do not write the class name itself.
      score_range: lowest and highest score, for regression.
      group: field that says which rows make one question, for metrics that
        count questions; rows of kind choice and span are a question each.
      tfds: data set in TFDS, e.g. `"super_glue/cb"`; empty where it has none.
      tfds_columns: field -> TFDS's feature where named otherwise.
      tfds_splits: split -> TFDS's split where named otherwise.
      rows: split -> published number of rows.
      target: whether it is one of the paper's nine targets.
      source: whether it is one of the paper's 21 sources.
    """

    name: str
    kind: Kind = "classification"
    description: str
    text_a: str
    text_b: str | None = None
    text_input: str = ""
    spoken: Mapping[str, Mapping[str, str]] = dataclasses.field(
        default_factory=dict
    )
    pointed: tuple[str, str, str] | tuple[()] = ()
    choices: tuple[str, ...] = ()
    placeholder: str = ""
    train_choices: int = 0
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    reader: str
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict
    )
    columns: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    width: int = 0
    lenient: bool = False
    label_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    score_range: tuple[float, float] = (0.0, 0.0)
    group: str = ""
    tfds: str = ""
    tfds_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
    target: bool = False
    source: bool = False

    @property
    def offline(self) -> bool:
        """Whether the rows are generated, without any file."""
        return self.reader == "offline"

    @functools.cached_property  # asked for once a row
    def fields(self) -> tuple[str, ...]:
        """The text fields of a row, in the order of the templates.

        Candidates, words and other lists are not among them.
        """
        template = self.text_a + (self.text_b or "") + self.text_input
        parts = string.Formatter().parse(template)
        names = dict.fromkeys(name for _, name, _, _ in parts if name)
        if len(self.choices) > 1:
            names |= dict.fromkeys(self.choices)
        made = {"choice", "words", "predicate", *self.choices[:1]}
        if len(self.choices) > 1:
            made -= set(self.choices)
        return tuple(name for name in names if name not in made)

    @property
    def listed_choices(self) -> bool:
        """Whether the candidates are a list in one field."""
        return self.kind == "choice" and len(self.choices) == 1

    @property
    def has_predicate(self) -> bool:
        """Whether tags are the roles around one word of the sentence."""
        return self.kind == "tags" and self.text_b == "{predicate}"

    @property
    def tag_names(self) -> tuple[str, ...]:
        """`O`, and `B-` and `I-` of each type of span; ids are positions."""
        pairs = ((f"B-{name}", f"I-{name}") for name in self.labels)
        return ("O", *(tag for pair in pairs for tag in pair))

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the outputs of the encoder's head say; empty for one score."""
        return {
            "classification": self.labels,
            "tags": self.tag_names,
            "span": ("start", "end"),
        }.get(self.kind, ())

    @property
    def outputs(self) -> int:
        """C: outputs of the encoder's head, a row or (tags, span) a token."""
        return len(self.output_names) or 1

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def fingerprint(self) -> str:
        """Short sha256 of everything that decides what a row becomes."""
        fields = dataclasses.asdict(self)
        for name in ("description", "metrics", "target", "source", "rows"):
            del fields[name]
        for name in _LATER:  # what releases after 0.1 added changes no other
            if not fields[name]:
                del fields[name]
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
