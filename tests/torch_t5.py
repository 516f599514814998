"""Tiny T5s of transformers with random weights, and their weights as ours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_bert
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    T5Config,
    T5ForConditionalGeneration,
)

from panda_jax.models import t5
from panda_jax.prompts import Prompt
from panda_jax.types import Params

LENGTH = 5

_PLAIN = t5.T5Config(
    vocab_size=61,
    width=32,
    layers=2,
    decoder_layers=3,
    heads=4,
    head_dim=12,
    ffn=40,
    buckets=8,
    max_distance=20,
)
FAMILIES = {
    "1.0": _PLAIN,
    "1.1": dataclasses.replace(
        _PLAIN, activation="gelu_new", gated=True, tied=False
    ),
}


def torch_config(config: t5.T5Config) -> T5Config:
    return T5Config(
        vocab_size=config.vocab_size,
        d_model=config.width,
        d_kv=config.head_dim,
        d_ff=config.ffn,
        num_layers=config.layers,
        num_decoder_layers=config.decoder_layers,
        num_heads=config.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu" if config.gated else "relu",
        tie_word_embeddings=config.tied,
        decoder_start_token_id=0,
    )


def torch_model(config: t5.T5Config, seed: int) -> T5ForConditionalGeneration:
    """Random weights; norms and position biases too, or nothing reads them."""
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(torch_config(config)).eval()
    if not config.tied:
        # transformers 5 ties whatever the configuration says.
        model.lm_head.weight = torch.nn.Parameter(
            torch.randn(config.vocab_size, config.width) * config.width**-0.5
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
            elif "relative_attention_bias" in name:
                weight.normal_()
    return model


def params_of(model: T5ForConditionalGeneration, config: t5.T5Config):
    """Our parameters, written out by hand from torch's names."""
    state = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def stacked(stack: str, part: str, transposed: bool = True):
        found = [
            state[f"{stack}.block.{layer}.layer.{part}.weight"]
            for layer in range(
                config.layers if stack == "encoder" else config.decoder_layers
            )
        ]
        return np.stack([x.T if transposed else x for x in found])

    def attention(stack: str, part: str):
        names = {"query": "q", "key": "k", "value": "v", "out": "o"}
        return {
            ours: {"kernel": stacked(stack, f"{part}.{theirs}")}
            for ours, theirs in names.items()
        }

    def mlp(stack: str, index: int):
        names = ("wi_0", "wi_1", "wo") if config.gated else ("wi", "wo")
        return {
            name: {"kernel": stacked(stack, f"{index}.DenseReluDense.{name}")}
            for name in names
        }

    def norm(stack: str, index: int):
        return {"scale": stacked(stack, f"{index}.layer_norm", False)}

    def around(stack: str, norm_name: str):
        bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "relpos_bias": {"rel_embedding": state[f"{stack}.{bias}"].T},
            norm_name: {"scale": state[f"{stack}.final_layer_norm.weight"]},
        }

    params = {
        "token_embedder": {"embedding": state["shared.weight"]},
        "encoder": around("encoder", "encoder_norm")
        | {
            "layers": {
                "pre_attention_layer_norm": norm("encoder", 0),
                "attention": attention("encoder", "0.SelfAttention"),
                "pre_mlp_layer_norm": norm("encoder", 1),
                "mlp": mlp("encoder", 1),
            }
        },
        "decoder": around("decoder", "decoder_norm")
        | {
            "layers": {
                "pre_self_attention_layer_norm": norm("decoder", 0),
                "self_attention": attention("decoder", "0.SelfAttention"),
                "pre_cross_attention_layer_norm": norm("decoder", 1),
                "encoder_decoder_attention": attention(
                    "decoder", "1.EncDecAttention"
                ),
                "pre_mlp_layer_norm": norm("decoder", 2),
                "mlp": mlp("decoder", 2),
            }
        },
    }
    if not config.tied:
        kernel = state["lm_head.weight"].T
        params["decoder"]["logits_dense"] = {"kernel": kernel}
    return params


def padded(
    rng: np.random.Generator, rows: int, length: int, entries: int
) -> np.ndarray:
    """[rows, length] int32 ids from 2 on, right-padded but for the first."""
    ids = rng.integers(2, entries, (rows, length), dtype=np.int32)
    lengths = rng.integers(1, length + 1, rows)
    lengths[0] = length
    return np.where(np.arange(length) < lengths[:, None], ids, 0)


def no_prompt(config: t5.T5Config) -> Prompt:
    return Prompt(np.zeros((0, config.width), np.float32), {})


def shallow_vectors(config: t5.T5Config) -> np.ndarray:
    shape = (LENGTH, config.width)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def deep_vectors(config: t5.T5Config) -> np.ndarray:
    shape = (config.decoder_layers, 2, LENGTH, config.heads, config.head_dim)
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


def torch_logits(model, inputs, targets, vectors=None) -> torch.Tensor:
    """Torch's logits; `vectors` is a shallow or a deep prompt."""
    targets = torch.tensor(targets).long()
    arguments = {
        "input_ids": torch.tensor(inputs).long(),
        "attention_mask": torch.tensor(inputs != 0).long(),
        "decoder_input_ids": torch.nn.functional.pad(targets[:, :-1], (1, 0)),
    }
    batch = len(inputs)
    if vectors is not None and vectors.ndim == 2:
        words = model.shared(arguments.pop("input_ids"))
        arguments["inputs_embeds"] = torch.cat(
            [vectors[None].expand(batch, -1, -1), words], 1
        )
        arguments["attention_mask"] = torch.nn.functional.pad(
            arguments["attention_mask"], (len(vectors), 0), value=1
        )
    elif vectors is not None:
        own = torch_bert.cache_of(vectors, batch)
        cache = EncoderDecoderCache(own, DynamicCache())
        arguments |= torch_bert.as_past(model, cache)
    return model(**arguments).logits


def assert_as_peft(
    params: Params,
    config: t5.T5Config,
    prompt: Prompt,
    model: torch.nn.Module,
    task_index: int | None = None,
) -> None:
    """That PEFT's model says the same with its prompt as ours with `prompt`.

    Logits are of order 10. Without the prompt they must be others.
    """
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(3, 50, (2, 7)), rng.integers(3, 50, (2, 4))
    inputs[1, 5:] = 0
    more = {}
    if task_index is not None:
        more["task_ids"] = torch.tensor([task_index] * 2)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor(inputs != 0).long(),
            labels=torch.tensor(targets),
            **more,
        ).logits.numpy()
    none = Prompt(np.zeros((0, config.width), np.float32), {})
    ours, without = (
        _apply(
            params,
            config,
            jnp.asarray(inputs, jnp.int32),
            jnp.asarray(targets, jnp.int32),
            each,
        )[0]
        for each in (prompt, none)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    assert np.abs(without - theirs).max() > 1e-2, "the prompt had no effect"


_apply = jax.jit(t5.apply, static_argnums=1)
