"""A tiny BERT of transformers, for the tests of prompts that go in and out."""

from typing import Any

import transformers

LAYERS, HEADS, WIDTH = 3, 4, 16


def config(**changes: Any) -> transformers.BertConfig:
    """Its sizes; weights large enough that a prompt makes a difference."""
    return transformers.BertConfig(
        **{
            "vocab_size": 50,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 32,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            **changes,
        }
    )
