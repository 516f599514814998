"""Backbones from and to Hugging Face folders, by a checked table.

Every tensor of the file is used once or named in the error; nothing that the
backbone needs is ever filled with random numbers.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from panda_jax.errors import UserError
from panda_jax.files import atomic_file, read_json, write_json
from panda_jax.interop import tensors as tensor_files
from panda_jax.models import bert, layers
from panda_jax.models.bert import BertConfig
from panda_jax.trees import flatten
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
# What a BERT file may hold beside the encoder: the pre-training heads, and a
# buffer of 0..511 that old versions stored.
_UNUSED = re.compile(r"cls\..*|embeddings\.position_ids")
_TRANSPOSED = ("/kernel",)


def bert_table(config: BertConfig) -> dict[str, list[str]]:
    """Our parameter path -> the tensors it is made of, one a layer."""
    table = {ours: [theirs] for ours, theirs in _EMBEDDINGS.items()}
    for ours, theirs in _MODULES.items():
        norm = ours.endswith("_norm")
        for part, name in (
            ("scale" if norm else "kernel", "weight"),
            ("bias", "bias"),
        ):
            table[f"layers/{ours}/{part}"] = [
                f"encoder.layer.{layer}.{theirs}.{name}"
                for layer in range(config.layers)
            ]
    return table


def bert_config(raw: Mapping[str, Any], *, path: str) -> BertConfig:
    """Sizes from a `config.json`.

    Raises:
      UserError: another architecture, a missing or absurd field.
    """
    kind = raw.get("model_type")
    if kind != "bert":
        raise UserError(
            f"{path}: model_type is {kind!r}; this version reads 'bert'."
        )
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{path}: position_embedding_type is "
            f"{raw['position_embedding_type']!r}, expected 'absolute'."
        )
    fields = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "positions": "max_position_embeddings",
        "types": "type_vocab_size",
    }
    sizes = {}
    for ours, theirs in fields.items():
        value = raw.get(theirs)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(
                f"{path}: {theirs} is {value!r}, expected a positive integer."
            )
        sizes[ours] = value
    if sizes["width"] % sizes["heads"]:
        raise UserError(
            f"{path}: hidden_size {sizes['width']} is no multiple of "
            f"num_attention_heads {sizes['heads']}."
        )
    activation = raw.get("hidden_act", "gelu")
    if activation not in layers.ACTIVATIONS:
        raise UserError(
            f"{path}: hidden_act is {activation!r}, expected one of "
            f"{', '.join(layers.ACTIVATIONS)}."
        )
    return BertConfig(
        **sizes,
        activation=activation,
        dropout=_fraction(raw, "hidden_dropout_prob", 0.1, path=path),
        attention_dropout=_fraction(
            raw, "attention_probs_dropout_prob", 0.1, path=path
        ),
        epsilon=_fraction(raw, "layer_norm_eps", 1e-12, path=path),
    )


def _fraction(
    raw: Mapping[str, Any], name: str, default: float, *, path: str
) -> float:
    value = raw.get(name, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(
            f"{path}: {name} is {value!r}, expected a number from 0 below 1."
        )
    return float(value)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, with `UserError` for a bad one."""
    if not path.is_file():
        raise UserError(
            f"The weights file {str(path)!r} does not exist. Expected a "
            "Hugging Face folder with config.json, model.safetensors and "
            "tokenizer.json or vocab.txt."
        )
    try:
        return tensor_files.read(path, fix="download it again")
    except UserError as error:
        raise UserError(f"Backbone {str(path.parent)!r}: {error}.") from None


def _canonical(name: str) -> str:
    """A tensor name without the prefix and spellings of older files."""
    name = name.removeprefix("bert.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def bert_params(
    tensors: Mapping[str, np.ndarray], config: BertConfig, *, path: str
) -> Params:
    """The parameter tree, fp32, from the tensors of a BERT file.

    Raises:
      UserError: a tensor is missing, superfluous, of another shape, or holds
        NaN or Inf; each by name.
    """
    found = {_canonical(name): array for name, array in tensors.items()}
    table = bert_table(config)
    wanted = {name for names in table.values() for name in names}
    missing = sorted(wanted - found.keys())
    extra = sorted(
        name for name in found.keys() - wanted if not _UNUSED.fullmatch(name)
    )
    if missing or extra:
        raise UserError(
            f"{path}: the tensors do not match config.json. "
            f"Missing {len(missing)}: {missing[:5]}. "
            f"Unknown {len(extra)}: {extra[:5]}."
        )
    shapes = nn.meta.unbox(
        jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    )
    tree: Params = {}
    for ours, leaf in flatten(shapes).items():
        stacked = ours.startswith("layers/")
        arrays = []
        for name in table[ours]:
            array = found[name]
            array = array.T if ours.endswith(_TRANSPOSED) else array
            expected = leaf.shape[1:] if stacked else leaf.shape
            if array.shape != expected:
                raise UserError(
                    f"{path}: tensor {name!r} has shape {found[name].shape}, "
                    f"expected {expected} (of {ours!r}, "
                    "kernels transposed) by config.json."
                )
            if not np.isfinite(np.asarray(array, np.float32)).all():
                raise UserError(f"{path}: tensor {name!r} holds NaN or Inf.")
            arrays.append(np.asarray(array, np.float32))
        _insert(tree, ours, np.stack(arrays) if stacked else arrays[0])
    return tree


def save_bert(folder: pathlib.Path, params: Params, config: BertConfig) -> None:
    """Writes `config.json` and `model.safetensors` that transformers loads."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten(params)
    tensors = {}
    for ours, names in bert_table(config).items():
        array = np.asarray(flat[ours])
        parts = list(array) if ours.startswith("layers/") else [array]
        for name, part in zip(names, parts, strict=True):
            part = part.T if ours.endswith(_TRANSPOSED) else part
            tensors[name] = np.ascontiguousarray(part)
    with atomic_file(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(
        folder / "config.json",
        {
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
        },
    )


def load_bert(folder: pathlib.Path) -> tuple[Params, BertConfig]:
    """Parameters (fp32, numpy) and sizes of a Hugging Face BERT folder."""
    path = folder / "config.json"
    raw = read_json(path, what="backbone configuration")
    config = bert_config(raw, path=str(path))
    weights = folder / "model.safetensors"
    return bert_params(read_tensors(weights), config, path=str(weights)), config


def _insert(tree: Params, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
