"""Our encoder against torch's, on real weights and real sentences."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_bert
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
)

from panda_jax import UserError, models
from panda_jax.interop import hf
from panda_jax.models import bert, cpu, layers
from panda_jax.prompts import Prompt

SENTENCES = [
    "The cat sat on the mat.",
    "Prompt transfer meets knowledge distillation: does it help?",
    "hi",
    "A prompt is a few vectors before the text, and it is all we tune. " * 8,
]
SECONDS = ["An animal was resting.", "It works, says the table.", "bye", "ok"]
TOLERANCE = 1e-4

# Compiling is most of the time that few sentences take, optimising most of it.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
apply = jit(bert.apply, static_argnums=1)


@pytest.fixture(scope="module")
def inputs(minilm_folder: pathlib.Path):
    """MiniLM's own ids of short texts and one of over 128 pieces."""
    tokenizer = BertTokenizerFast.from_pretrained(minilm_folder)
    encoded = tokenizer(SENTENCES, SECONDS, padding=True, return_tensors="pt")
    assert encoded["input_ids"].shape[1] > 128
    # A cased vocabulary is smaller.
    assert encoded["input_ids"].max() < models.config("bert-tiny").vocab_size
    return encoded


def random_classifier(config: bert.BertConfig):
    """Torch's; biases and norms are random too, or nothing reads them."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn,
            num_labels=3,
            initializer_range=0.1,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("LayerNorm.weight"):
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model


@pytest.fixture(scope="module", params=["bert-tiny", "minilm-l6"])
def classifier(request, minilm_folder, tmp_path_factory):
    """A cased tiny BERT of random weights, or the real MiniLM.

    Our parameters, sizes and head of three classes, and the same in torch.
    """
    if request.param == "minilm-l6":
        torch.manual_seed(0)
        folder = minilm_folder
        model = BertForSequenceClassification.from_pretrained(
            folder, num_labels=3
        )
        torch.nn.init.normal_(model.classifier.weight)
    else:
        folder = tmp_path_factory.mktemp("random")
        model = random_classifier(models.config(request.param))
        model.bert.save_pretrained(folder)
    params, config = hf.load_bert(folder)
    assert config == models.config(request.param)
    head = {
        "kernel": model.classifier.weight.detach().numpy().T,
        "bias": model.classifier.bias.detach().numpy(),
    }
    return params, config, head, model.eval()


def deep_vectors(config: bert.BertConfig, length: int = 20) -> np.ndarray:
    shape = (config.layers, 2, length, config.heads, config.head_dim)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def shallow_vectors(config: bert.BertConfig, length: int = 7) -> np.ndarray:
    vectors = np.random.default_rng(2).normal(size=(length, config.width))
    return vectors.astype(np.float32)


def torch_outputs(model: BertModel, inputs, vectors: torch.Tensor):
    """Torch's outputs behind a prompt, of length 0 for none."""
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    length = vectors.shape[2 if vectors.ndim == 5 else 0]
    batch = len(tokens)
    arguments: dict[str, Any] = {
        "attention_mask": torch.nn.functional.pad(mask, (length, 0), value=1)
    }
    if vectors.ndim == 2:
        words = model.embeddings.word_embeddings(tokens)
        prompt = vectors[None].expand(batch, -1, -1)
        return model(
            inputs_embeds=torch.cat([prompt, words], 1),
            token_type_ids=torch.nn.functional.pad(
                inputs["token_type_ids"], (length, 0)
            ),
            **arguments,
        )
    if length:
        # The released code shifts the text's positions by P.
        cache = torch_bert.cache_of(vectors, batch)
        arguments |= torch_bert.as_past(model, cache)
        arguments["use_cache"] = True
        arguments["position_ids"] = torch.arange(tokens.shape[1])[None] + length
    return model(
        input_ids=tokens, token_type_ids=inputs["token_type_ids"], **arguments
    )


def no_vectors(config: bert.BertConfig) -> np.ndarray:
    return deep_vectors(config, 0)


def ours(params, config, inputs, prompt, **settings):
    return apply(
        params,
        config,
        inputs["input_ids"].numpy(),
        inputs["token_type_ids"].numpy(),
        prompt,
        **settings,
    )


@pytest.mark.parametrize("make", [no_vectors, shallow_vectors, deep_vectors])
def test_activations_and_logits_equal_torch(classifier, inputs, make):
    """Shallow: inputs_embeds. Deep: past keys and values."""
    params, config, head, model = classifier
    vectors = make(config)
    logits, aux = ours(params, config, inputs, Prompt(vectors, head))
    assert logits.shape == (len(SENTENCES), 3)
    with torch.no_grad():
        theirs = torch_outputs(model.bert, inputs, torch.tensor(vectors))
        expected = model.classifier(theirs.pooler_output).numpy()
    mask = inputs["attention_mask"].numpy()[..., None]
    last = theirs.last_hidden_state.numpy()
    mask = np.pad(
        mask,
        ((0, 0), (last.shape[1] - mask.shape[1], 0), (0, 0)),
        constant_values=1,
    )
    assert np.abs((aux["hidden"] - last) * mask).max() < TOLERANCE
    assert np.abs(aux["pooled"] - theirs.pooler_output.numpy()).max() < (
        TOLERANCE
    )
    assert np.abs(logits - expected).max() < TOLERANCE
    # Logits tell the rows apart, and the prompt is read.
    assert np.ptp(expected, axis=0).max() > 0.1
    if vectors.size:
        plain, _ = ours(
            params, config, inputs, Prompt(no_vectors(config), head)
        )
        assert np.abs(logits - plain).max() > 0.1


@pytest.mark.parametrize("classifier", ["bert-tiny"], indirect=True)
@pytest.mark.parametrize("make", [shallow_vectors, deep_vectors])
def test_gradients_of_prompts_equal_torch(classifier, inputs, make):
    params, config, head, model = classifier
    vectors = make(config)

    @jit
    @jax.grad
    def gradient(vectors):
        tokens, segments = (
            inputs[name].numpy() for name in ("input_ids", "token_type_ids")
        )
        prompt = Prompt(vectors, head)
        return (
            bert.apply(params, config, tokens, segments, prompt)[0] ** 2
        ).mean()

    leaf = torch.tensor(vectors, requires_grad=True)
    pooled = torch_outputs(model.bert, inputs, leaf).pooler_output
    model.classifier(pooled).square().mean().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 1e-3
    assert np.abs(gradient(vectors) - leaf.grad.numpy()).max() < TOLERANCE


def test_neurons_are_the_feed_forward_activations(classifier, inputs):
    """Against hooks on torch, at a position other than the first."""
    params, config, _, model = classifier
    caught = []
    hooks = [
        layer.intermediate.register_forward_hook(
            lambda module, inputs, output: caught.append(output[:, 2])
        )
        for layer in model.bert.encoder.layer
    ]
    with torch.no_grad():
        model.bert(**inputs)
    for hook in hooks:
        hook.remove()
    prompt = Prompt(no_vectors(config), {})
    _, aux = ours(params, config, inputs, prompt, probe=2)
    theirs = torch.stack(caught).numpy()
    assert np.abs(aux["neurons"] - theirs).max() < TOLERANCE


def test_exported_folder_is_what_torch_reads(tiny, tmp_path):
    hf.save(tmp_path, tiny.params, tiny.config)
    model = BertModel.from_pretrained(tmp_path).eval()
    tokens = np.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(tokens)).pooler_output.numpy()
    empty = Prompt(deep_vectors(tiny.config, 0), {})
    _, aux = bert.apply(tiny.params, tiny.config, tokens, 0 * tokens, empty)
    np.testing.assert_allclose(aux["pooled"], theirs, atol=TOLERANCE)


def bf16_bound(config: bert.BertConfig, hidden: np.ndarray) -> float:
    """How far bf16 hidden states may be from fp32 ones.

    A rounding to bf16 multiplies a value by 1 + d, |d| <= u = 2^-8, taken as
    independent and uniform: a standard deviation of s = u / sqrt(3) at most.
    A linear map sums errors like its terms, of random sign, so each rounding
    adds s relative to the root mean square, in squares; softmax of scores of
    order 1 makes their error a relative one; a normalised residual sum hands
    on what its terms carry. So R roundings in a row give s sqrt(R) at most,
    and of N Gaussian errors none is further away than sqrt(2 ln(2 N / p))
    deviations with probability 1 - p; p = 1e-3.

    R: a projection rounds its kernel, its product and its sum with the bias,
    3, a norm its scale and its result, 2. Attention: query, key and value 9,
    probabilities 1, context 1, out 3, residual sum 1, norm 2: 17. Feed-forward:
    wi 3, activation 1, wo 3, residual sum 1, norm 2: 10. Embedding: three
    tables, two sums and a norm: 7.
    """
    roundings = config.layers * (17 + 10) + 7
    deviation = 2**-8 / math.sqrt(3) * math.sqrt(roundings)
    rms = math.sqrt(np.square(hidden).mean())
    return math.sqrt(2 * math.log(2 * hidden.size / 1e-3)) * deviation * rms


@pytest.mark.parametrize("make", [shallow_vectors, deep_vectors])
def test_bf16_is_within_the_derived_bound(classifier, inputs, make):
    params, config, head, _ = classifier
    prompt = Prompt(make(config), head)
    _, full = ours(params, config, inputs, prompt)
    in_bf16 = dataclasses.replace(config, dtype="bfloat16")
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    logits, aux = ours(half, in_bf16, inputs, prompt)
    assert aux["hidden"].dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    real = inputs["attention_mask"].numpy().astype(bool)
    first = aux["hidden"].shape[1] - real.shape[1]
    exact, rounded = (
        np.asarray(x["hidden"], np.float32)[:, first:][real]
        for x in (full, aux)
    )
    error, bound = np.abs(rounded - exact).max(), bf16_bound(config, exact)
    assert bound / 10 < error < bound


def test_remat_changes_neither_values_nor_gradients(tiny):
    """With dropout: what is computed again draws the same masks."""
    tokens = np.arange(1, 17).reshape(2, 8)

    def run(config):
        def loss(params, vectors):
            _, aux = bert.apply(
                params,
                config,
                tokens,
                0 * tokens,
                Prompt(vectors, {}),
                key=jax.random.key(7),
            )
            return jnp.square(aux["pooled"]).mean()

        both = jax.value_and_grad(loss, argnums=(0, 1))
        arguments = tiny.params, deep_vectors(config, 3)
        computed_again = "remat" in str(jax.make_jaxpr(both)(*arguments))
        return jit(both)(*arguments), computed_again

    plain, absent = run(tiny.config)
    again, present = run(dataclasses.replace(tiny.config, remat=True))
    assert (absent, present) == (False, True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        plain,
        again,
    )


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-7)]
)
def test_attention_equals_jax_nn(rng, dtype, tolerance, scale):
    """And its gradients, with padding, relative positions and a prefix.

    Tolerances are relative to the largest value, some 2 roundings.
    """
    B, P, T, H, K = 3, 4, 11, 2, 24
    shapes = [(B, T, H, K), (B, P + T, H, K), (B, P + T, H, K)]
    arguments = [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]
    positions = rng.normal(size=(1, H, T, P + T)).astype(np.float32)
    mask = np.arange(P + T) < np.array([P + T, P + 5, P + 1])[:, None]
    mask = mask[:, None, None]

    def own(query, key, value, positions):
        return layers.attend(
            query,
            key,
            value,
            jnp.where(mask, 0.0, layers.MASKED),
            positions=positions,
            dropout_key=None,
            dropout_rate=0.1,
            scale=scale,
        )

    def of_jax(query, key, value, positions):
        return jax.nn.dot_product_attention(
            query, key, value, bias=positions, mask=mask, scale=scale
        )

    def output_and_gradients(attend):
        def loss(*arguments):
            output = jnp.asarray(attend(*arguments), jnp.float32)
            return jnp.square(output).sum(), output

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(*arguments, positions)

    outputs = [
        jax.tree.leaves(output_and_gradients(attend))
        for attend in (own, of_jax)
    ]
    assert len(outputs[0]) == 5
    for mine, theirs in zip(*outputs, strict=True):
        mine, theirs = np.float32(mine), np.float32(theirs)
        assert np.abs(mine - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 12, 64, 37)])
def test_random_bits_are_jax_s(shape):
    """Else what seeds gave before would change, and lanes be no runs alone."""
    key = jax.random.key(7)
    expected = np.asarray(jax.random.bits(key, shape, np.uint16))
    for function in (
        cpu.random_bits,
        jax.jit(cpu.random_bits, static_argnums=1),
    ):
        np.testing.assert_array_equal(function(key, shape), expected)
    keys = jax.random.split(key, 3)
    many = jax.vmap(lambda key: cpu.random_bits(key, shape))(keys)
    each = [jax.random.bits(key, shape, np.uint16) for key in keys]
    np.testing.assert_array_equal(many, np.stack(each))


def test_random_bits_of_another_generator():
    key = jax.random.key(7, impl="rbg")
    expected = jax.random.bits(key, (3, 5), np.uint16)
    np.testing.assert_array_equal(cpu.random_bits(key, (3, 5)), expected)


def test_dropout_falls_on_text_and_prompt_and_keeps_the_mean():
    x = jnp.ones((64, 1024))
    y = layers.dropout(jax.random.key(0), 0.1, x)
    assert abs(float((y == 0).mean()) - 0.1) < 0.005
    assert abs(float(y.mean()) - 1.0) < 0.005
    assert layers.dropout(None, 0.1, x) is x


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


def test_a_backbone_is_a_pytree_of_its_parameters(tiny):
    """Through jit, vmap and tree.map, with all that is not an array beside."""
    leaves, structure = jax.tree.flatten(tiny)
    assert len(leaves) == len(jax.tree.leaves(tiny.params)) > 9
    again = jax.tree.unflatten(structure, leaves)
    assert again.fingerprint == tiny.fingerprint
    assert again.tokenizer is tiny.tokenizer
    half = jax.tree.map(lambda x: x / 2, tiny)
    tokens = jnp.ones((1, 3), jnp.int32)

    @jax.jit
    def hidden(backbone):
        prompt = Prompt(backbone.empty_vectors, {})
        _, aux = bert.apply(
            backbone.params, backbone.config, tokens, 0 * tokens, prompt
        )
        return aux["hidden"]

    found = hidden(tiny)
    np.testing.assert_array_equal(found, hidden(again))
    assert not np.allclose(found, hidden(half))
