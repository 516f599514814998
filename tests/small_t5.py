"""A T5 of 200,000 weights that has learnt one built-in task."""

import contextlib
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_spiece
from stepping import train_step

from panda_jax.data import loading
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.interop import hf
from panda_jax.models import T5Config, t5
from panda_jax.prompts import Prompt
from panda_jax.step import steps
from panda_jax.store.backbones import Backbone, load_backbone

CONFIG = T5Config(
    vocab_size=192,
    width=64,
    layers=2,
    decoder_layers=2,
    heads=4,
    head_dim=16,
    ffn=128,
    dropout=0.0,
)
TASKS = ("toy_sentiment", "toy_review")
LENGTH = 48
STEPS = 200


def vocabulary(folder: pathlib.Path) -> TextTokenizer:
    """Trains `spiece.model` on the texts of `TASKS`."""
    plain = TextTokenizer.of_bytes()
    texts = []
    for task in TASKS:
        rows = loading.load_text_examples(
            task, "train", tokenizer=plain, input_length=400, limit=512
        )
        texts += [plain.decode(x) for x in (*rows.inputs, *rows.targets)]
    (folder / "spiece.model").write_bytes(small_spiece.trained(texts, 190))
    return TextTokenizer.from_file(folder)


def shared(factory: pytest.TempPathFactory) -> Backbone:
    """The backbone of `write`, trained once for all workers and files."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "small_t5"
    if not folder.exists():
        made = factory.mktemp("made") / "t5"
        write(made)
        # Another worker may have been quicker; its model is the same.
        with contextlib.suppress(OSError):
            made.rename(folder)
    return load_backbone(str(folder))


def write(folder: pathlib.Path) -> Backbone:
    """A Hugging Face folder of the T5, model-tuned on `toy_sentiment`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = loading.load_text_examples(
        "toy_sentiment",
        "train",
        tokenizer=vocabulary(folder),
        input_length=LENGTH,
        limit=512,
    )
    params = jax.jit(t5.init, static_argnums=1)(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda box: box.value, params, is_leaf=_boxed)
    none = Prompt(jnp.zeros((0, CONFIG.width)), {})
    state = steps.init_state(steps.Trainable(none, params))
    hyper = steps.Hyper(3e-3, 0.0, np.inf, 0.0, jax.random.key(0))
    spec = steps.StepSpec(CONFIG, "text")
    for step in range(STEPS):
        chosen = np.random.default_rng(step).permutation(len(rows))[:32]
        state, _ = train_step(
            state, None, rows.batch(chosen), None, None, hyper, spec=spec
        )
    hf.save(folder, state.trainable.backbone, CONFIG)
    return load_backbone(str(folder))


def _boxed(leaf: object) -> bool:
    return hasattr(leaf, "value")
