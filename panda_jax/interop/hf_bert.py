"""BERT from and to Hugging Face folders, by a checked table.

DistilBERT, and ELECTRAs whose embeddings are as wide as their layers, are
BERTs without a pooler under other names.  What is written is a BERT.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

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
# What is an encoder's, in each of the families that are BERTs under other
# names, by the name of the model's part that the encoder is.
_OWN = re.compile(r"(embeddings|encoder|pooler|transformer)\..*")
# What transformers' BERTs have beside the encoder, where old conversions leave
# the part's name out.
_HEADS = re.compile(r"(cls|classifier|qa_outputs)\..*")
# A buffer of 0..511 that old versions stored.
_UNUSED = re.compile(r"embeddings\.position_ids")
_TYPES = "embeddings.token_type_embeddings.weight"
_DISTILBERT = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
# DistilBERT's names of what BERT's configuration says; it has no segments.
_DISTILBERT_SETTINGS = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
KINDS = ("bert", "distilbert", "electra")


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
    """Sizes from a `config.json` of a BERT, DistilBERT or ELECTRA.

    Whether there is a pooler only the weights say: `with_pooler`.

    Raises:
      UserError: another architecture, a missing or absurd field, or a setting
        that makes another model of it.
    """
    kind = raw.get("model_type")
    if kind not in KINDS:
        raise UserError(f"{path}: model_type is {kind!r}, expected 'bert'.")
    _check_encoder(raw, path=path)
    spelt = _DISTILBERT_SETTINGS if kind == "distilbert" else {}
    sizes: dict[str, Any] = {
        ours: tables.size(
            raw,
            spelt.get(theirs, theirs),
            path=path,
            most=ours if ours == "layers" else "size",
        )
        for ours, theirs in {
            "vocab_size": "vocab_size",
            "width": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "ffn": "intermediate_size",
            "positions": "max_position_embeddings",
        }.items()
    }
    if kind != "distilbert":
        sizes["types"] = tables.size(raw, "type_vocab_size", path=path)
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"{path}: hidden_size {sizes['width']} is no multiple of "
            f"num_attention_heads {sizes['heads']}."
        )
    embedded = raw.get("embedding_size", sizes["width"])
    if kind == "electra" and embedded != sizes["width"]:
        raise UserError(
            f"{path}: embedding_size is {embedded!r} and hidden_size "
            f"{sizes['width']}, expected the same: ELECTRAs that project their "
            "embeddings (the small ones) are not read."
        )
    name = spelt.get("hidden_act", "hidden_act")
    activation = raw.get(name, "gelu")
    if not isinstance(activation, str) or activation not in layers.ACTIVATIONS:
        raise UserError(
            f"{path}: {name} is {activation!r}, expected one of "
            f"{', '.join(layers.ACTIVATIONS)}."
        )
    dropout, attention_dropout = (
        tables.fraction(raw, spelt.get(name, name), 0.1, path=path)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    )
    return BertConfig(
        **sizes,
        activation=activation,
        dropout=dropout,
        attention_dropout=attention_dropout,
        epsilon=tables.fraction(raw, "layer_norm_eps", 1e-12, path=path),
    )


def _check_encoder(raw: Mapping[str, Any], *, path: str) -> None:
    """Refuses settings with which the same weights compute something else."""
    for name, plain in {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }.items():
        if raw.get(name, plain) != plain:
            made = (raw.get("architectures") or ["of it"])[0]
            raise UserError(
                f"{path}: {name} is {raw[name]!r}, expected {plain!r}: a BERT "
                f"here is an encoder, and this makes another model ({made})."
            )


def with_pooler(config: BertConfig, names: Iterable[str]) -> BertConfig:
    """The sizes, knowing of the pooler by the tensors of the file."""
    found = any(_canonical(name).startswith("pooler.") for name in names)
    return dataclasses.replace(config, pooler=found)


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
    """The parameter tree, fp32, from the tensors of a file.

    Heads of tasks and of pretraining that lie around the encoder are left.

    Raises:
      UserError: a tensor of the encoder is missing, superfluous, of another
        shape or type, or holds NaN or Inf; each by name.
    """
    held = _encoder(tensors)
    if any(name.startswith("transformer.") for name in map(_part, held)):
        # DistilBERT has no segments: both are a row of zeros.
        held[_TYPES] = np.zeros((config.types, config.width), np.float32)
    return tables.assemble(
        held,
        bert_table(config),
        path=path,
        source="config.json",
        spell=_canonical,
        unused=_UNUSED,
    )


def _encoder(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's tensors, by their own names.

    In a model of several parts the encoder is the part that is named after the
    family; whatever is beside it is another part.  In an encoder alone what
    nobody knows is an error.
    """
    parts = any(_part(name) != name for name in tensors)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if _part(name) != name
        or (_OWN.fullmatch(name) if parts else not _HEADS.fullmatch(name))
    }


def _part(name: str) -> str:
    """A tensor's name inside of the encoder, where a model has parts."""
    kind, _, rest = name.partition(".")
    return rest if kind in KINDS else name


def _canonical(name: str) -> str:
    """A tensor's name in a BERT of today."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", _part(name))
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    layer = re.fullmatch(r"transformer\.layer\.(\d+)\.(.*)\.(\w+)", name)
    if layer is None:
        return name
    index, module, part = layer.groups()
    return f"encoder.layer.{index}.{_DISTILBERT.get(module, module)}.{part}"
