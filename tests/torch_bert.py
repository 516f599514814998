"""A tiny BERT of transformers, and how its models are given a deep prompt."""

import inspect
from importlib import metadata
from typing import Any

import torch
import transformers

from panda_jax.interop import peft_pairs

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


def cache_of(vectors: torch.Tensor, batch: int) -> transformers.DynamicCache:
    """A deep prompt [L, 2, P, H, K] as the past of each row of a batch."""
    cache = transformers.DynamicCache()
    for layer, pair in enumerate(vectors):
        keys, values = (
            part.permute(1, 0, 2)[None].expand(batch, -1, -1, -1)
            for part in pair
        )
        cache.update(keys, values, layer)
    return cache


def as_past(model: torch.nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of `forward` that takes a cache.

    It is `past_key_values` until transformers 5.23, and `cache` since.
    """
    known = inspect.signature(model.forward).parameters
    (name,) = {"cache", "past_key_values"} & {*known}
    return {name: cache}


def through_peft(model: Any, form: str, **batch: torch.Tensor) -> Any:
    """PEFT's outputs, or None where it refuses as our table says.

    A pair of versions that the table lacks may refuse, in words that it has.
    """
    pair = peft_pairs.find(transformers.__version__, metadata.version("peft"))
    known = [pair] if pair else peft_pairs.pairs()
    expected = {other.with_peft[form].error for other in known}
    said, out = "", None
    try:
        out = model(**batch)
    except ValueError as error:
        said = f"{type(error).__name__}: {error}"
    assert said in expected
    return out
