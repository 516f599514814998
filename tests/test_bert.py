"""Our encoder against torch's, on real weights and real sentences."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DynamicCache,
)

from panda_jax import UserError, models
from panda_jax.interop import hf
from panda_jax.models import bert
from panda_jax.prompts import Prompt

SENTENCES = [
    "The cat sat on the mat.",
    "Prompt transfer meets knowledge distillation: does it help?",
    "hi",
]
SECONDS = ["An animal was resting.", "It works, says the table.", "bye"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def minilm(minilm_folder: pathlib.Path):
    params, config = hf.load_bert(minilm_folder)
    tokenizer = BertTokenizerFast.from_pretrained(minilm_folder)
    inputs = tokenizer(SENTENCES, SECONDS, padding=True, return_tensors="pt")
    torch_model = BertModel.from_pretrained(minilm_folder).eval()
    return params, config, inputs, torch_model


def run_ours(minilm, vectors: np.ndarray) -> dict[str, jax.Array]:
    params, config, inputs, _ = minilm
    apply = jax.jit(bert.apply, static_argnums=1)
    return apply(
        params,
        config,
        inputs["input_ids"].numpy(),
        inputs["token_type_ids"].numpy(),
        Prompt(vectors, {}),
    )[1]


def assert_same(ours: dict[str, jax.Array], theirs, mask: np.ndarray) -> None:
    hidden = (ours["hidden"] - theirs.last_hidden_state.numpy()) * mask[
        ..., None
    ]
    pooled = ours["pooled"] - theirs.pooler_output.numpy()
    assert np.abs(hidden).max() < TOLERANCE
    assert np.abs(pooled).max() < TOLERANCE


def deep_vectors(config: bert.BertConfig, length: int) -> np.ndarray:
    shape = (config.layers, 2, length, config.heads, config.head_dim)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def past_of(vectors: np.ndarray, batch: int) -> DynamicCache:
    """The prompt as torch's past keys and values, [B, H, P, K] a layer."""
    cache = DynamicCache()
    for layer, pair in enumerate(vectors):
        key, value = (
            torch.tensor(part).permute(1, 0, 2)[None].expand(batch, -1, -1, -1)
            for part in pair
        )
        cache.update(key, value, layer)
    return cache


def test_hidden_states_and_pooled_output_equal_torch(minilm):
    _, config, inputs, torch_model = minilm
    with torch.no_grad():
        theirs = torch_model(**inputs)
    ours = run_ours(minilm, deep_vectors(config, 0))
    assert_same(ours, theirs, inputs["attention_mask"].numpy())


def test_deep_prompt_equals_torch_past_keys_and_values(minilm):
    _, config, inputs, torch_model = minilm
    length, (batch, tokens) = 20, inputs["input_ids"].shape
    vectors = deep_vectors(config, length)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        theirs = torch_model(
            **{
                **inputs,
                "attention_mask": torch.cat(
                    [torch.ones(batch, length, dtype=mask.dtype), mask], 1
                ),
            },
            past_key_values=past_of(vectors, batch),
            # The released code shifts the text's positions by P.
            position_ids=torch.arange(length, length + tokens)[None],
            use_cache=True,
        )
    assert_same(run_ours(minilm, vectors), theirs, mask.numpy())


def test_shallow_prompt_equals_torch_input_embeddings(minilm):
    _, config, inputs, torch_model = minilm
    length, (batch, _) = 7, inputs["input_ids"].shape
    vectors = np.random.default_rng(2).normal(size=(length, config.width))
    vectors = vectors.astype(np.float32)
    ones = torch.ones(batch, length, dtype=torch.long)
    words = torch_model.embeddings.word_embeddings(inputs["input_ids"])
    prompt = torch.tensor(vectors)[None].expand(batch, -1, -1)
    mask = torch.cat([ones, inputs["attention_mask"]], 1)
    with torch.no_grad():
        theirs = torch_model(
            inputs_embeds=torch.cat([prompt, words], 1),
            attention_mask=mask,
            token_type_ids=torch.cat([0 * ones, inputs["token_type_ids"]], 1),
        )
    assert_same(run_ours(minilm, vectors), theirs, mask.numpy())


def test_neurons_are_the_feed_forward_activations(minilm):
    """Against hooks on torch, at a position other than the first."""
    _, config, inputs, torch_model = minilm
    caught = []
    hooks = [
        layer.intermediate.register_forward_hook(
            lambda module, inputs, output: caught.append(output[:, 2])
        )
        for layer in torch_model.encoder.layer
    ]
    with torch.no_grad():
        torch_model(**inputs)
    for hook in hooks:
        hook.remove()
    params, config, _, _ = minilm
    _, aux = bert.apply(
        params,
        config,
        inputs["input_ids"].numpy(),
        inputs["token_type_ids"].numpy(),
        Prompt(deep_vectors(config, 0), {}),
        probe=2,
    )
    theirs = torch.stack(caught).numpy()
    assert np.abs(aux["neurons"] - theirs).max() < TOLERANCE


def test_classifier_logits_equal_torch_on_random_weights(tmp_path):
    config = BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=40,
        num_labels=3,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config).eval()
    model.bert.save_pretrained(tmp_path)
    params, ours = hf.load_bert(tmp_path)
    tokens = np.random.default_rng(0).integers(1, 99, size=(4, 9))
    tokens[0, 6:] = 0
    head = {
        "kernel": model.classifier.weight.detach().numpy().T,
        "bias": model.classifier.bias.detach().numpy(),
    }
    logits, _ = bert.apply(
        params, ours, tokens, 0 * tokens, Prompt(deep_vectors(ours, 0), head)
    )
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(tokens != 0).long(),
        ).logits.numpy()
    np.testing.assert_allclose(logits, theirs, atol=TOLERANCE)


def test_exported_folder_is_what_torch_reads(tiny, tmp_path):
    hf.save_bert(tmp_path, tiny.params, tiny.config)
    model = BertModel.from_pretrained(tmp_path).eval()
    tokens = np.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(tokens)).pooler_output.numpy()
    empty = Prompt(deep_vectors(tiny.config, 0), {})
    _, aux = bert.apply(tiny.params, tiny.config, tokens, 0 * tokens, empty)
    np.testing.assert_allclose(aux["pooled"], theirs, atol=TOLERANCE)


def test_bfloat16_stays_near_float32(tiny):
    """bf16 keeps 8 bits: 2^-8 a rounding, some tens of them in 2 layers."""
    import dataclasses

    tokens = np.arange(1, 17).reshape(2, 8)
    empty = Prompt(deep_vectors(tiny.config, 4), {})
    _, full = bert.apply(tiny.params, tiny.config, tokens, 0 * tokens, empty)
    half_config = dataclasses.replace(tiny.config, dtype="bfloat16")
    half_params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params)
    _, half = bert.apply(half_params, half_config, tokens, 0 * tokens, empty)
    assert half["hidden"].dtype == jnp.bfloat16
    error = np.abs(full["hidden"] - half["hidden"].astype(jnp.float32)).max()
    assert 0 < error < 32 * 2**-8


def test_dropout_falls_on_text_and_prompt_and_keeps_the_mean():
    from panda_jax.models.layers import dropout

    x = jnp.ones((64, 1024))
    y = dropout(jax.random.key(0), 0.1, x)
    assert abs(float((y == 0).mean()) - 0.1) < 0.005
    assert abs(float(y.mean()) - 1.0) < 0.005
    assert dropout(None, 0.1, x) is x


def test_padding_is_masked(tiny):
    tokens = np.arange(1, 7)[None]
    longer = np.pad(tokens, ((0, 0), (0, 5)))
    empty = Prompt(deep_vectors(tiny.config, 3), {})
    _, short = bert.apply(tiny.params, tiny.config, tokens, 0 * tokens, empty)
    _, padded = bert.apply(tiny.params, tiny.config, longer, 0 * longer, empty)
    np.testing.assert_allclose(short["pooled"], padded["pooled"], atol=1e-5)


def test_too_many_positions_is_an_error(tiny):
    tokens = np.ones((1, 510), np.int32)
    with pytest.raises(UserError, match="513 positions"):
        bert.apply(
            tiny.params,
            tiny.config,
            tokens,
            0 * tokens,
            Prompt(deep_vectors(tiny.config, 3), {}),
        )


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(UserError, match="bert-tiny"):
        models.config("bert-tinny")
