"""A split of examples -> logits -> the task's metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import metrics, steps
from panda_jax.backbone import Backbone, load_backbone
from panda_jax.data import Examples, load_examples
from panda_jax.errors import UserError
from panda_jax.files import PathLike
from panda_jax.models.bert import BertConfig
from panda_jax.prompts import Prompt
from panda_jax.store import StoredPrompt, check_backbone, load_prompt
from panda_jax.tasks import specs
from panda_jax.types import Params

BATCH = 64


def padded_batches(
    examples: Examples, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[size, T] tokens and segments, in order; the last batch repeats row 0.

    One shape for every batch means one compilation.
    """
    total = len(examples.tokens)
    size = min(size, total)
    batches = []
    for start in range(0, total, size):
        rows = np.arange(start, start + size)
        rows[rows >= total] = 0
        batches.append((examples.tokens[rows], examples.segments[rows]))
    return batches


def logits(
    params: Params,
    config: BertConfig,
    prompt: Prompt,
    examples: Examples,
    *,
    batch_size: int = BATCH,
) -> np.ndarray:
    """[E, C] fp32 logits of every example, without dropout."""
    prompt = jax.tree.map(jnp.asarray, prompt)
    outputs = [
        steps.predict_step(params, tokens, segments, prompt, config=config)
        for tokens, segments in padded_batches(examples, batch_size)
    ]
    return np.concatenate(jax.device_get(outputs))[: len(examples.tokens)]


def scores(
    params: Params,
    config: BertConfig,
    prompt: Prompt,
    examples: Examples,
    *,
    names: tuple[str, ...],
    batch_size: int = BATCH,
) -> dict[str, float]:
    """Each named metric on a split; higher = better.

    Raises:
      UserError: the model's outputs hold NaN or Inf.
    """
    output = logits(params, config, prompt, examples, batch_size=batch_size)
    return {
        name: metrics.compute(name, examples.labels, output) for name in names
    }


def evaluate(
    prompt: PathLike | StoredPrompt,
    *,
    task: str | None = None,
    split: str = "validation",
    backbone: Backbone | str | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    max_length: int | None = None,
    eval_examples: int | None = None,
) -> dict[str, Any]:
    """Scores a stored prompt.

    Args:
      prompt: a prompt, or the folder of one (or of its run).
      task: by default the prompt's own.
      split: `train` or `validation`.
      backbone: loaded, or an id; by default the one the prompt names.
      data_dir: folder of the tasks' files; default `PANDA_DATA_DIR`.
      tfds_data_dir: of TFDS.
      max_length: of the text, in word pieces; None for the prompt's own.
      eval_examples: rows of a label-balanced subsample; None for all.

    Returns:
      `{"task", "split", "examples", "scores": {metric: value}}`.

    Raises:
      UserError: a wrong name or folder, a prompt of another backbone, or one
        whose head does not fit the task.
    """
    stored = prompt if isinstance(prompt, StoredPrompt) else load_prompt(prompt)
    spec = specs.get(task or stored.info.task)
    if backbone is None:
        backbone = stored.info.backbone
        if stored.info.method == "model" and stored.path is not None:
            # A model-tuned run keeps its backbone beside its head.
            backbone = str(stored.path.parent / "model")
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    check_backbone(stored.info, backbone.fingerprint, backbone.id)
    outputs = stored.prompt.head["bias"].shape[0] if stored.prompt.head else 0
    if outputs != spec.outputs:
        raise UserError(
            f"The prompt of task {stored.info.task!r} has a head of {outputs} "
            f"outputs; task {spec.name!r} needs {spec.outputs}."
        )
    examples = load_examples(
        spec.name,
        split,
        tokenizer=backbone.tokenizer,
        max_length=max_length or stored.info.max_length or 128,
        data_dir=data_dir,
        tfds_data_dir=tfds_data_dir,
        limit=eval_examples,
    )
    found = scores(
        backbone.params,
        backbone.config,
        stored.prompt,
        examples,
        names=spec.metrics,
    )
    return {
        "task": spec.name,
        "split": split,
        "examples": len(examples.tokens),
        "scores": found,
    }
