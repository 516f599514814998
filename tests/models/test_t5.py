"""Our T5 against torch's, with random weights."""

import dataclasses
import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import torch_t5
from torch_t5 import deep_vectors, no_prompt, shallow_vectors, torch_logits
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from panda_jax import UserError, models
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.models import bert, cpu, relative, t5, t5_layers
from panda_jax.models.trees import flatten, size
from panda_jax.prompts import Prompt

TOLERANCE = 1e-5
VOCABULARY = pathlib.Path(__file__).parents[3] / "shared/data/t5_vocab"
TEXTS = [
    "rte sentence1: The cat sat on the mat. sentence2: An animal rested.",
    "squad context: Prompts are short; passages are not, and far words matter. "
    * 16,
    "not_entailment",
]
B, T, U, P = 3, 9, 6, torch_t5.LENGTH

# Compiling is most of the time that a tiny model takes, optimising most of it.
jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
apply = jit(t5.apply, static_argnums=1)
encode = jit(t5.encode, static_argnums=1)
decode_logits = jit(t5.decode_logits, static_argnums=1)


@functools.cache
def pair(name: str, **sizes: int):
    """Our parameters and sizes, and the same in torch."""
    config = dataclasses.replace(torch_t5.FAMILIES[name], **sizes)
    model = torch_t5.torch_model(config, seed=0)
    return torch_t5.params_of(model, config), config, model


@pytest.fixture(params=list(torch_t5.FAMILIES))
def family(request):
    return pair(request.param)


@pytest.fixture
def gated():
    return pair("1.1")


def examples(rng, config, *, batch=B, inputs=T, targets=U):
    """Padded inputs and targets."""
    return tuple(
        torch_t5.padded(rng, batch, length, config.vocab_size)
        for length in (inputs, targets)
    )


def difference(ours, theirs: torch.Tensor) -> float:
    return float(np.abs(np.asarray(ours) - theirs.detach().numpy()).max())


@pytest.mark.parametrize(
    ("inputs", "targets"), [(T, U), (70, 50)], ids=["short", "past buckets"]
)
def test_logits_and_hidden_states_equal_torch(family, rng, inputs, targets):
    params, config, model = family
    x, y = examples(rng, config, inputs=inputs, targets=targets)
    assert max(inputs, targets) <= 9 or targets > 2 * config.max_distance
    logits, aux = apply(params, config, x, y, no_prompt(config))
    assert logits.shape == (B, targets, config.vocab_size)
    assert difference(logits, torch_logits(model, x, y)) < TOLERANCE
    theirs = model.encoder(
        torch.tensor(x).long(), attention_mask=torch.tensor(x != 0).long()
    )
    real = torch.tensor(x != 0)[..., None]
    hidden = aux["hidden"] * real.numpy()
    assert difference(hidden, theirs.last_hidden_state * real) < TOLERANCE


@functools.cache
def tokens_of(tokenizer: str) -> tuple[int, np.ndarray, np.ndarray]:
    """A vocabulary's size in models, and padded ids of texts and answers.

    The longest are of 200 and 150 tokens: past T5's distance of 128.
    """
    if tokenizer == "bytes":
        ours, entries = TextTokenizer.of_bytes(), 384
    else:
        if not VOCABULARY.is_dir():
            pytest.skip("needs T5's vocabulary")
        ours, entries = TextTokenizer.from_file(VOCABULARY), 32128
    padded = []
    for texts, length in ((TEXTS, 200), (reversed(TEXTS), 150)):
        rows = [ids[: length - 1] + [1] for ids in ours.encode(list(texts))]
        assert max(map(len, rows)) == length
        assert min(map(len, rows)) < 64
        padded.append(
            np.array([row + [0] * (length - len(row)) for row in rows], "int32")
        )
    return entries, *padded


@pytest.mark.parametrize(
    "make", [no_prompt, shallow_vectors, deep_vectors], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("tokenizer", ["bytes", "T5's pieces"])
@pytest.mark.parametrize("name", torch_t5.FAMILIES)
def test_logits_of_tokenized_texts_equal_torch(name, tokenizer, make):
    """With T5's own buckets, 32 up to a distance of 128."""
    entries, x, y = tokens_of(tokenizer)
    sizes = {"vocab_size": entries, "buckets": 32, "max_distance": 128}
    params, config, model = pair(name, **sizes)
    made = make(config)
    prompt = made if isinstance(made, Prompt) else Prompt(made, {})
    logits, _ = apply(params, config, x, y, prompt)
    with torch.no_grad():
        theirs = torch_logits(
            model, x, y, torch.tensor(prompt.vectors) if prompt.length else None
        )
    assert difference(logits, theirs) < 1e-4
    assert theirs.std() > 0.5


@pytest.mark.parametrize("make", [shallow_vectors, deep_vectors])
def test_prompts_and_their_gradients_equal_torch(family, rng, make):
    """Shallow: inputs_embeds. Deep: the prefix as past keys and values."""
    params, config, model = family
    x, y = examples(rng, config)
    vectors = make(config)

    def loss(vectors):
        logits, _ = t5.apply(params, config, x, y, Prompt(vectors, {}))
        return jnp.square(logits).mean(), logits

    gradient, logits = jit(jax.grad(loss, has_aux=True))(vectors)
    leaf = torch.tensor(vectors, requires_grad=True)
    theirs = torch_logits(model, x, y, leaf)
    theirs.square().mean().backward()
    assert difference(logits, theirs) < TOLERANCE
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 1e-3
    assert difference(gradient, leaf.grad) < TOLERANCE
    # The prompt is read at all.
    plain, _ = apply(params, config, x, y, no_prompt(config))
    assert np.abs(logits - plain).max() > 1e-2


def test_deep_prompt_is_what_peft_applies(family, rng):
    """PEFT deals out its layers by twos: decoder layer i gets pair 2 i mod L.

    With L = 3 that is an order of all three, with an even L half of them
    would never be read.
    """
    params, config, model = family
    x, y = examples(rng, config)
    layers, vectors = config.decoder_layers, deep_vectors(config)
    wrapped = peft.get_peft_model(
        T5ForConditionalGeneration(torch_t5.torch_config(config)).eval(),
        peft.PrefixTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            inference_mode=True,
            num_virtual_tokens=P,
            num_layers=layers,
            num_attention_heads=config.heads,
            token_dim=config.heads * config.head_dim,
        ),
    ).eval()
    base = wrapped.get_base_model()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.clone())
    base.load_state_dict(model.state_dict())
    dealt = np.empty_like(vectors)
    for layer in range(layers):
        dealt[2 * layer % layers] = vectors[layer]
    weight = np.moveaxis(dealt, 2, 0).reshape(P, -1)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(
            torch.tensor(weight)
        )
        theirs = wrapped(
            input_ids=torch.tensor(x).long(),
            attention_mask=torch.tensor(x != 0).long(),
            labels=torch.tensor(y).long(),
        ).logits
    ours, _ = apply(params, config, x, y, Prompt(vectors, {}))
    assert difference(ours, theirs) < TOLERANCE


def test_a_prompt_of_length_0_is_no_prompt(gated, rng):
    params, config, _ = gated
    x, y = examples(rng, config)
    plain, aux = apply(params, config, x, y, no_prompt(config))
    assert aux["hidden"].shape == (B, T, config.width)
    # Also where it was shaped for the encoder's layers.
    empty = np.zeros((config.layers, 2, 0, config.heads, config.head_dim))
    same, _ = apply(params, config, x, y, Prompt(empty, {}))
    np.testing.assert_array_equal(plain, same)


def test_neurons_are_what_wo_reads(family, rng):
    """Against hooks on torch, at a position other than the first."""
    params, config, model = family
    x, _ = examples(rng, config)
    caught = []
    hooks = [
        block.layer[1].DenseReluDense.wo.register_forward_pre_hook(
            lambda module, inputs: caught.append(inputs[0][:, 4])
        )
        for block in model.encoder.block
    ]
    with torch.no_grad():
        torch_logits(model, x, x, torch.tensor(shallow_vectors(config)))
    for hook in hooks:
        hook.remove()
    prompt = Prompt(shallow_vectors(config), {})
    hidden, mask, aux = encode(params, config, x, prompt, probe=4)
    assert aux["neurons"].shape == (config.layers, B, config.ffn)
    assert difference(aux["neurons"], torch.stack(caught)) < TOLERANCE
    np.testing.assert_array_equal(
        mask, np.pad(x != 0, ((0, 0), (P, 0)), constant_values=True)
    )
    np.testing.assert_array_equal(hidden, aux["hidden"])


@pytest.mark.parametrize(
    ("buckets", "distance"), [(32, 128), (8, 20), (16, 64), (12, 37), (4, 3)]
)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_torch(buckets, distance, bidirectional):
    distances = np.arange(-700, 700)
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(distances), bidirectional, buckets, distance
    )
    ours = relative.relative_buckets(
        distances,
        buckets=buckets,
        max_distance=distance,
        bidirectional=bidirectional,
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_rows_of_one_input_share_its_encoding(gated, rng):
    params, config, _ = gated
    x, _ = examples(rng, config)
    prompt = Prompt(deep_vectors(config), {})
    y = torch_t5.padded(rng, 2 * B, U, config.vocab_size)
    encoded, mask, _ = encode(params, config, x, prompt)
    together = decode_logits(params, config, encoded, mask, y, prompt)
    each = decode_logits(
        params,
        config,
        np.repeat(encoded, 2, axis=0),
        np.repeat(mask, 2, axis=0),
        y,
        prompt,
    )
    np.testing.assert_allclose(together, each, atol=TOLERANCE)


def bf16_bound(config: t5.T5Config, logits: np.ndarray) -> float:
    """How far bf16 logits may be from fp32 ones.

    A rounding to bf16 multiplies a value by 1 + d, |d| <= u = 2^-8; taken as
    independent and uniform, d has a standard deviation of s = u / sqrt(3) at
    most. A linear map sums such errors like its terms, of random sign, so that
    one rounding of its input or kernel makes an error of s relative to the
    root mean square of its output, and independent ones add up in squares.
    Activation and normalisation hand a relative error on as it is; a product
    of two (gates, scores) adds both factors'; softmax makes the scores' error
    a relative one, as T5 starts from scores of order 1; a residual sum
    averages what its terms carry. So R roundings in a row give s sqrt(R) at
    most. Of N logits with Gaussian errors none is then further away than
    sqrt(2 ln(2 N / p)) deviations with probability 1 - p; p = 1e-3.

    R: norm, kernel, result and residual for each of a layer's projections in
    a row, a norm's scale and result 2. Attention: norm 2; query, key and value
    kernels and results 6; probabilities 1; context 1; out's kernel and result
    2; residual sum 1: 13. Feed-forward: norm 2, wi's kernel and result 2 (gated
    4), activation 1 (gated: and product, 2), wo's kernel and result 2, residual
    sum 1: 8 (11). Around: embeddings or prompt 1 and last norm 2, 3 a stack;
    logits' kernel: 1.
    """
    attention, mlp = 13, 11 if config.gated else 8
    roundings = (
        config.layers * (attention + mlp)
        + config.decoder_layers * (2 * attention + mlp)
        + 2 * 3
        + 1
    )
    deviation = 2**-8 / math.sqrt(3) * math.sqrt(roundings)
    rms = math.sqrt(np.square(logits).mean())
    return math.sqrt(2 * math.log(2 * logits.size / 1e-3)) * deviation * rms


@pytest.mark.parametrize(
    ("name", "make"), [("1.0", shallow_vectors), ("1.1", deep_vectors)]
)
def test_bf16_is_within_the_derived_bound(rng, name, make):
    params, config, _ = pair(name)
    x, y = examples(rng, config, batch=16, inputs=30, targets=25)
    prompt = Prompt(make(config), {})
    exact = np.asarray(apply(params, config, x, y, prompt)[0])
    half = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), params)
    in_bf16 = dataclasses.replace(config, dtype="bfloat16")
    logits, aux = apply(half, in_bf16, x, y, prompt)
    assert logits.dtype == jnp.float32
    assert aux["hidden"].dtype == jnp.bfloat16
    # Logits are not rounded once more.
    assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.9
    error = np.abs(logits - exact).max()
    bound = bf16_bound(config, exact)
    assert bound / 10 < error < bound


def inner_jaxprs(params):
    """Of loops, branches and calls; JAX 0.12 has no such function any more."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def equations(jaxpr):
    """Every equation, also inside of scans and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation.params):
            yield from equations(inner)


def test_softmax_and_norms_are_fp32_in_bf16(family, rng):
    _, config, _ = family
    config = dataclasses.replace(config, dtype="bfloat16")
    boxed = jax.eval_shape(lambda key: t5.init(key, config), jax.random.key(0))
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
        nn.meta.unbox(boxed),
    )
    x, y = examples(rng, config)
    jaxpr = jax.make_jaxpr(t5.apply, static_argnums=1)(
        params, config, x, y, no_prompt(config)
    )
    seen = [
        (e.primitive.name, e.invars[0].aval.dtype)
        for e in equations(jaxpr.jaxpr)
        if e.primitive.name in ("exp", "rsqrt", "reduce_sum", "reduce_max")
    ]
    # Softmax: one attention in the encoder's body, two in the decoder's.
    assert [name for name, _ in seen].count("exp") == 3
    assert [name for name, _ in seen].count("rsqrt") == 2 + 1 + 3 + 1
    assert {str(dtype) for _, dtype in seen} == {"float32"}


def test_remat_changes_neither_values_nor_gradients(gated, rng):
    """With dropout: what is computed again draws the same masks."""
    params, config, _ = gated
    x, y = examples(rng, config)
    key = jax.random.key(7)

    def run(config):
        def loss(params, vectors):
            logits, _ = t5.apply(
                params, config, x, y, Prompt(vectors, {}), key=key
            )
            return jnp.square(logits).mean()

        both = jax.value_and_grad(loss, argnums=(0, 1))
        vectors = shallow_vectors(config)
        traced = jit(both).trace(params, vectors)
        names = {e.primitive.name for e in equations(traced.jaxpr.jaxpr)}
        return traced.lower().compile()(params, vectors), "remat2" in names

    plain, absent = run(config)
    again, present = run(dataclasses.replace(config, remat=True))
    assert (absent, present) == (False, True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        plain,
        again,
    )


def test_dropout_falls_where_t5x_has_it(family, rng, monkeypatch):
    """Which masks are drawn: only the encoder's last is by position."""
    # One equation a draw.
    monkeypatch.setattr(cpu, "random_bits", jax.random.bits)
    params, config, _ = family
    x, y = examples(rng, config)
    prompt = Prompt(deep_vectors(config), {})
    jaxpr = jax.make_jaxpr(
        lambda key: t5.apply(params, config, x, y, prompt, key=key)
    )(jax.random.key(0))
    drawn = [
        e.outvars[0].aval.shape
        for e in equations(jaxpr.jaxpr)
        if e.primitive.name == "random_bits"
    ]
    D, F, H = config.width, config.ffn, config.heads
    embedding = residual = (B, 1, D)
    mlp = (B, 1, F)
    encoder = [embedding, (B, H, 1, T), residual, mlp, residual, (B, T, D)]
    decoder = [embedding, (B, H, 1, P + U), residual]
    decoder += [(B, H, 1, T), residual, mlp, residual, (B, 1, D)]
    assert sorted(drawn) == sorted(encoder + decoder)


@pytest.mark.parametrize("rows", [1, 2])
def test_cross_attention_is_the_same_absorbed(family, rng, monkeypatch, rows):
    """With kernels on the queries' side: outputs, gradients, dropout."""
    params, config, _ = family
    x, y = examples(rng, config)
    y = np.repeat(y, rows, axis=0)[:, : 8 // rows]
    prompt = Prompt(shallow_vectors(config), {})

    def both():
        def total(prompt):
            keys = jax.random.split(jax.random.key(0))
            encoded, mask, _ = t5.encode(params, config, x, prompt, key=keys[0])
            logits = t5.decode_logits(
                params, config, encoded, mask, y, prompt, key=keys[1]
            )
            return jnp.square(logits).mean(), logits

        (_, logits), gradient = jax.value_and_grad(total, has_aux=True)(prompt)
        return logits, gradient.vectors

    asked = []

    def plain(self, x, memory, bias):
        asked.append(x.shape)
        return self(x, *self.keys_values(memory), bias)

    found = both()
    assert rows * y.shape[1] < config.head_dim
    monkeypatch.setattr(t5_layers.Attention, "absorbed", plain)
    expected = both()
    assert asked
    for ours, theirs in zip(found, expected, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * scale)


def test_dropout_is_drawn_by_its_key(gated, rng):
    params, config, _ = gated
    x, y = examples(rng, config)
    plain, _ = apply(params, config, x, y, no_prompt(config))
    first, again, other = (
        apply(params, config, x, y, no_prompt(config), key=key)[0]
        for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3


def test_prompts_and_targets_that_do_not_fit_are_refused(gated, rng):
    params, config, _ = gated
    x, y = examples(rng, config)
    wide = Prompt(np.zeros((P, config.width + 1), np.float32), {})
    with pytest.raises(UserError, match=r"shape \[5, 33\], expected \[5, 32\]"):
        t5.apply(params, config, x, y, wide)
    short = Prompt(deep_vectors(config)[:-1], {})
    with pytest.raises(UserError, match="another backbone"):
        t5.apply(params, config, x, y, short)
    encoded, mask = np.zeros((B, T, config.width)), x != 0
    many = np.concatenate([y, y[:1]])
    with pytest.raises(UserError, match="4 rows of targets for 3 inputs"):
        t5.decode_logits(params, config, encoded, mask, many, no_prompt(config))
    with pytest.raises(UserError, match="max_distance of 2"):
        relative.relative_buckets(
            np.arange(3), buckets=8, max_distance=2, bidirectional=True
        )


# What the released checkpoints hold, from `T5ForConditionalGeneration` with
# their configurations: all but the second copies of tied embeddings.
PARAMETERS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5_1_1-small": 76_961_152,
    "t5_1_1-base": 247_577_856,
    "t5_1_1-large": 783_150_080,
    "t5_1_1-xl": 2_849_757_184,
    "t5_1_1-xxl": 11_135_332_352,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_zoo_has_the_true_sizes(name):
    config = models.config(name)
    assert isinstance(config, t5.T5Config)
    assert models.module(config) is t5
    boxed = jax.eval_shape(lambda key: t5.init(key, config), jax.random.key(0))
    assert size(nn.meta.unbox(boxed)) == PARAMETERS[name]
    with torch.device("meta"):
        theirs = T5ForConditionalGeneration(torch_t5.torch_config(config))
    untied = 0 if config.tied else config.vocab_size * config.width
    # transformers 5 shows the tied table once.
    assert theirs.num_parameters() + untied == PARAMETERS[name]


def test_every_t5_of_the_zoo_is_tested():
    t5s = {n for n, c in models.CONFIGS.items() if isinstance(c, t5.T5Config)}
    assert t5s == set(PARAMETERS)
    assert models.module(models.config("bert-tiny")) is bert


def test_parameters_are_boxed_with_logical_axes_and_drawn_as_t5x():
    config = dataclasses.replace(
        torch_t5.FAMILIES["1.1"], width=64, head_dim=16, ffn=96
    )
    boxed = jit(t5.init, static_argnums=1)(jax.random.key(0), config)
    boxes = jax.tree.leaves(
        boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    assert all(len(box.names) == box.value.ndim for box in boxes)
    assert {name for box in boxes for name in box.names} == {
        "layers",
        "embed",
        "joined_kv",
        "heads",
        "mlp",
        "vocab",
        "relpos_buckets",
    }
    params = flatten(nn.meta.unbox(boxed))
    theirs = torch_t5.params_of(torch_t5.torch_model(config, seed=0), config)
    assert {k: v.shape for k, v in params.items()} == {
        k: v.shape for k, v in flatten(theirs).items()
    }
    for path, deviation in {
        "token_embedder/embedding": 1.0,
        "encoder/layers/attention/query/kernel": (64 * 16) ** -0.5,
        "encoder/layers/attention/key/kernel": 64**-0.5,
        "decoder/layers/self_attention/out/kernel": 64**-0.5,
        "decoder/layers/mlp/wo/kernel": 96**-0.5,
        "decoder/logits_dense/kernel": 64**-0.5,
    }.items():
        assert np.std(params[path]) == pytest.approx(deviation, rel=0.05), path
