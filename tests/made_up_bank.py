"""A bank of prompts that nobody trained, on `random:bert-tiny`."""

import pathlib

import numpy as np
from panda_jax.tasks import specs

from panda_jax.prompts import Prompt
from panda_jax.store import prompt_folders
from panda_jax.store.backbones import Backbone

TASKS = ("toy_review", "toy_sentiment")


def write(folder: pathlib.Path, backbone: Backbone) -> pathlib.Path:
    """A deep prompt of each task, with a head; returns `folder`."""
    config = backbone.config
    rng = np.random.default_rng(0)
    for task in TASKS:
        names = specs.get(task).output_names
        shape = (config.layers, 2, 4, config.heads, config.head_dim)
        prompt = Prompt(
            rng.normal(size=shape).astype(np.float32),
            {
                "kernel": rng.normal(size=(config.width, len(names))).astype(
                    np.float32
                ),
                "bias": np.zeros(len(names), np.float32),
            },
        )
        info = prompt_folders.PromptInfo(
            task=task,
            backbone=backbone.id,
            fingerprint=backbone.fingerprint,
            kind="deep",
            method="prompt",
            max_length=16,
            scores={"accuracy": 0.5},
            labels=list(names),
        )
        prompt_folders.save_prompt(folder / task, prompt, info)
    return folder
