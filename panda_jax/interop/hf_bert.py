"""BERT from and to Hugging Face folders, by a checked table."""

import re
from collections.abc import Mapping
from typing import Any

from panda_jax.errors import UserError
from panda_jax.interop import tables
from panda_jax.models import layers
from panda_jax.models.bert import BertConfig
from panda_jax.types import Params

_EMBEDDINGS = {
    "token/embedding": "embeddings.word_embeddings.weight",
    "position/embedding": "embeddings.position_embeddings.weight",
    "segment/embedding": "embeddings.token_type_embeddings.weight",
    "embedding_norm/scale": "embeddings.LayerNorm.weight",
    "embedding_norm/bias": "embeddings.LayerNorm.bias",
    "pooler/kernel": "pooler.dense.weight",
    "pooler/bias": "pooler.dense.bias",
}
_MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "wi": "intermediate.dense",
    "wo": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}
# What a BERT file may hold beside the encoder: the pre-training heads, and a
# buffer of 0..511 that old versions stored.
_UNUSED = re.compile(r"cls\..*|embeddings\.position_ids")


def bert_table(config: BertConfig) -> tables.Table:
    """Our parameter path -> the tensors it is made of, one a layer."""
    table = {}
    for path, shape in tables.shapes(config).items():
        if path in _EMBEDDINGS:
            names = [_EMBEDDINGS[path]]
        else:
            _, module, part = path.split("/")
            names = [
                f"encoder.layer.{layer}.{_MODULES[module]}.{_PARTS[part]}"
                for layer in range(config.layers)
            ]
        stacked = path not in _EMBEDDINGS
        table[path] = tables.torch_leaf(path, shape, names, stacked=stacked)
    return table


def bert_config(raw: Mapping[str, Any], *, path: str) -> BertConfig:
    """Sizes from a `config.json`.

    Raises:
      UserError: another architecture, a missing or absurd field.
    """
    kind = raw.get("model_type")
    if kind != "bert":
        raise UserError(f"{path}: model_type is {kind!r}, expected 'bert'.")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{path}: position_embedding_type is "
            f"{raw['position_embedding_type']!r}, expected 'absolute'."
        )
    sizes: dict[str, Any] = {
        ours: tables.size(
            raw, theirs, path=path, most=ours if ours == "layers" else "size"
        )
        for ours, theirs in {
            "vocab_size": "vocab_size",
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "ffn": "intermediate_size",
            "positions": "max_position_embeddings",
            "types": "type_vocab_size",
        }.items()
    }
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"{path}: hidden_size {sizes['width']} is no multiple of "
            f"num_attention_heads {sizes['heads']}."
        )
    activation = raw.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in layers.ACTIVATIONS:
        raise UserError(
            f"{path}: hidden_act is {activation!r}, expected one of "
            f"{', '.join(layers.ACTIVATIONS)}."
        )
    return BertConfig(
        **sizes,
        activation=activation,
        dropout=tables.fraction(raw, "hidden_dropout_prob", 0.1, path=path),
        attention_dropout=tables.fraction(
            raw, "attention_probs_dropout_prob", 0.1, path=path
        ),
        epsilon=tables.fraction(raw, "layer_norm_eps", 1e-12, path=path),
    )


def bert_json(config: BertConfig) -> dict[str, Any]:
    """The `config.json` of which `bert_config` is the inverse."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.positions,
        "type_vocab_size": config.types,
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "layer_norm_eps": config.epsilon,
        "pad_token_id": 0,
    }


def bert_params(
    tensors: Mapping[str, Any], config: BertConfig, *, path: str
) -> Params:
    """The parameter tree, fp32, from the tensors of a BERT file.

    Raises:
      UserError: a tensor is missing, superfluous, of another shape or type,
        or holds NaN or Inf; each by name.
    """
    return tables.assemble(
        tensors,
        bert_table(config),
        path=path,
        source="config.json",
        spell=_canonical,
        unused=_UNUSED,
    )


def _canonical(name: str) -> str:
    """A tensor name without the prefix and spellings of older files."""
    name = name.removeprefix("bert.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
