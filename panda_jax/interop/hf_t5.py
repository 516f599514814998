"""T5 1.0, 1.1, LM-adapted and mT5 from and to Hugging Face folders.

transformers 4 writes `tie_word_embeddings` for two things at once: whether the
logits are made with the embeddings, and whether they are then scaled by
D^-0.5.  transformers 5 writes the second as `scale_decoder_outputs`, always
says that the embeddings are tied, and unties them where the file holds a
`lm_head.weight` of its own.  For mT5 the two versions disagree on the scaling
of tied logits; no mT5 was published with them, so none are read.
"""

import re
from collections.abc import Mapping
from typing import Any

from panda_jax.errors import UserError
from panda_jax.interop import tables
from panda_jax.models.t5 import T5Config
from panda_jax.types import Params

EMBEDDING, LOGITS = "shared.weight", "lm_head.weight"
_WHOLE = {
    "token_embedder/embedding": EMBEDDING,
    "decoder/logits_dense/kernel": LOGITS,
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
}
# Torch keeps the bias that all layers share in the first.
_WHOLE |= {
    f"{stack}/relpos_bias/rel_embedding": (
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    )
    for stack in ("encoder", "decoder")
}
_NORMS = {
    "pre_attention_layer_norm": "layer.0.layer_norm",
    "pre_self_attention_layer_norm": "layer.0.layer_norm",
    "pre_cross_attention_layer_norm": "layer.1.layer_norm",
}
_ATTENTIONS = {
    "attention": "layer.0.SelfAttention",
    "self_attention": "layer.0.SelfAttention",
    "encoder_decoder_attention": "layer.1.EncDecAttention",
}
_LETTERS = {"query": "q", "key": "k", "value": "v", "out": "o"}
# The feed-forward block is the last one of a layer.
_LAST = {"encoder": 1, "decoder": 2}
# Files of the first T5s hold a bias that cross-attention never had.
_UNUSED = re.compile(
    r"decoder\.block\.0\.layer\.1\.EncDecAttention"
    r"\.relative_attention_bias\.weight"
)
_COPIES = {
    "encoder.embed_tokens.weight": EMBEDDING,
    "decoder.embed_tokens.weight": EMBEDDING,
}
# In classes with a head on top the model is a part; those heads are left.
_PART = "transformer."
_HEADS = re.compile(r"(classification_head|classifier|qa_outputs)\..*")
_FORWARD = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True)}
_SIZES = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "ffn": "d_ff",
}


def t5_table(config: T5Config) -> tables.Table:
    """Our parameter path -> the tensors it is made of, one a layer."""
    count = {"encoder": config.layers, "decoder": config.decoder_layers}
    table = {}
    for path, shape in tables.shapes(config).items():
        if path in _WHOLE:
            names = [_WHOLE[path]]
        else:
            stack, _, rest = path.split("/", 2)
            names = [
                f"{stack}.block.{layer}.{_in_block(stack, rest)}.weight"
                for layer in range(count[stack])
            ]
        stacked = path not in _WHOLE
        table[path] = tables.torch_leaf(path, shape, names, stacked=stacked)
    return table


def _in_block(stack: str, path: str) -> str:
    """`attention/query/kernel` -> `layer.0.SelfAttention.q`, and so on."""
    module, part = path.split("/", 1)
    if module == "mlp":
        return f"layer.{_LAST[stack]}.DenseReluDense.{part.split('/')[0]}"
    if module == "pre_mlp_layer_norm":
        return f"layer.{_LAST[stack]}.layer_norm"
    if module in _NORMS:
        return _NORMS[module]
    return f"{_ATTENTIONS[module]}.{_LETTERS[part.split('/')[0]]}"


def t5_config(raw: Mapping[str, Any], *, path: str) -> T5Config:
    """Sizes from a `config.json`.

    Raises:
      UserError: another architecture, a missing or absurd field.
    """
    kind = raw.get("model_type")
    if kind not in ("t5", "mt5"):
        raise UserError(
            f"{path}: model_type is {kind!r}, expected 't5' or 'mt5'."
        )
    usual = "gated-gelu" if kind == "mt5" else "relu"
    forward = raw.get("feed_forward_proj", usual)
    if not isinstance(forward, str) or forward not in _FORWARD:
        raise UserError(
            f"{path}: feed_forward_proj is {forward!r}, expected "
            f"{' or '.join(map(repr, _FORWARD))}."
        )
    activation, gated = _FORWARD[forward]
    scaled = raw.get(
        "scale_decoder_outputs", raw.get("tie_word_embeddings", True)
    )
    if type(scaled) is not bool:
        raise UserError(
            f"{path}: tie_word_embeddings (or scale_decoder_outputs) is "
            f"{scaled!r}, expected true or false."
        )
    layers = tables.size(raw, "num_layers", path=path, most="layers")
    # Files of old versions leave these out, or say null.
    absent = {
        "num_decoder_layers": layers,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }
    told = {k: v for k, v in raw.items() if v is not None}
    decoder_layers, buckets, distance = (
        tables.size(
            told,
            name,
            path=path,
            default=default,
            most="layers" if "layers" in name else "size",
        )
        for name, default in absent.items()
    )
    sizes: dict[str, Any] = {
        ours: tables.size(raw, theirs, path=path)
        for ours, theirs in _SIZES.items()
    }
    return T5Config(
        **sizes,
        layers=layers,
        decoder_layers=decoder_layers,
        buckets=buckets,
        max_distance=distance,
        dropout=tables.fraction(raw, "dropout_rate", 0.1, path=path),
        epsilon=tables.fraction(raw, "layer_norm_epsilon", 1e-6, path=path),
        activation=activation,
        gated=gated,
        tied=scaled and kind == "t5",
    )


def t5_json(config: T5Config) -> dict[str, Any]:
    """The `config.json` of which `t5_config` is the inverse.

    Raises:
      UserError: transformers has no name for the feed-forward block.
    """
    names = {value: name for name, value in _FORWARD.items()}
    forward = (config.activation, config.gated)
    if forward not in names:
        raise UserError(
            f"T5 with activation {config.activation!r}, gated: "
            f"{config.gated}, has no Hugging Face form; expected 'relu' not "
            "gated, or 'gelu_new' gated."
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_layers": config.layers,
        "num_decoder_layers": config.decoder_layers,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.epsilon,
        "feed_forward_proj": names[forward],
        "tie_word_embeddings": config.tied,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def encoder_decoder(
    tensors: Mapping[str, Any],
    raw: Mapping[str, Any],
    config: T5Config,
    *,
    path: str,
) -> dict[str, Any]:
    """The tensors of a file as T5ForConditionalGeneration names them.

    What is tied may be there under any of its names.  A head may be missing
    too, being the embeddings unscaled, where transformers 5 has written the
    file; in others a head that is missing is missing.

    Args:
      tensors: of the file.
      raw: its `config.json`.
      config: made of that.
      path: of the folder, for messages.

    Raises:
      UserError: the file holds no decoder.
    """
    found = {
        name.removeprefix(_PART): tensor
        for name, tensor in tensors.items()
        if not _HEADS.fullmatch(name)
    }
    stacks = {name.partition(".")[0] for name in found}
    if "encoder" in stacks and "decoder" not in stacks:
        made = (raw.get("architectures") or ["T5EncoderModel"])[0]
        raise UserError(
            f"{path}: the weights are an encoder's alone ({made}). A T5 "
            "answers by writing, which needs its decoder too: save "
            "T5ForConditionalGeneration, or T5Model, of the same model."
        )
    tied = config.tied or raw.get("tie_word_embeddings", True) is True
    known = (*_COPIES, *((LOGITS,) if tied and _is_t5(raw) else ()))
    one = next((name for name in known if name in found), None)
    if EMBEDDING not in found and one is not None:
        found[EMBEDDING] = found[one]
    left_out = LOGITS not in found and EMBEDDING in found
    if raw.get("scale_decoder_outputs") is False and left_out:
        found[LOGITS] = found[EMBEDDING]
    return found


def _is_t5(raw: Mapping[str, Any]) -> bool:
    return raw.get("model_type") == "t5"


def t5_params(
    tensors: Mapping[str, Any], config: T5Config, *, path: str
) -> Params:
    """The parameter tree, fp32, from the tensors of a T5 file.

    Raises:
      UserError: a tensor is missing, superfluous, of another shape or type,
        or holds NaN or Inf, or a copy of the embeddings differs from them;
        each by name.
    """
    return tables.assemble(
        tensors,
        t5_table(config),
        path=path,
        source="config.json",
        unused=_UNUSED,
        copies=_COPIES | ({LOGITS: EMBEDDING} if config.tied else {}),
    )
