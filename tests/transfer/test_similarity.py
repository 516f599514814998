"""The metrics against float64 references, and their promised properties."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_bert
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import BertModel

from panda_jax import UserError, load_backbone
from panda_jax.step import steps
from panda_jax.transfer import similarity

# XLA may take numbers below the smallest normal one for 0.
FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
PROMPTS = hnp.arrays(np.float32, (3, 4, 5), elements=FINITE)
COSINES = {
    "e_avg": similarity.e_avg,
    "token_pairs": similarity.token_pairs,
    "e_concat": similarity.e_concat,
    "neuron_overlap": similarity.neuron_overlap,
    "raw_overlap": lambda a, b: similarity.neuron_overlap(
        a, b, binarised=False
    ),
}
DISTANCES = {
    "distance_concat": similarity.distance_concat,
    "distance_average": similarity.distance_average,
}
METRICS = COSINES | DISTANCES
ANY_ORDER = ["e_avg", "token_pairs", "distance_average"]
ONE_ON_ITSELF = sorted({*METRICS} - {"token_pairs", "distance_average"})
LOWEST = dict.fromkeys(COSINES, -1) | {"neuron_overlap": 0}
EXAMPLES = hypothesis.settings(max_examples=25, deadline=None)


def cosine_of(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p.ravel(), q.ravel()
    return float(p @ q / (np.linalg.norm(p) * np.linalg.norm(q)))


def pairs_of(p: np.ndarray, q: np.ndarray, function) -> float:
    """The mean of a function of two positions over all pairs."""
    return float(np.mean([[function(x, y) for y in q] for x in p]))


def distance_of(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.linalg.norm(p - q))


# Of two prompts [P, D] in float64, pair by pair, as the papers write them.
REFERENCES = {
    "e_avg": lambda p, q: cosine_of(p.mean(0), q.mean(0)),
    "token_pairs": lambda p, q: pairs_of(p, q, cosine_of),
    "e_concat": cosine_of,
    "distance_concat": lambda p, q: 1 / (1 + distance_of(p, q)),
    "distance_average": lambda p, q: 1 / (1 + pairs_of(p, q, distance_of)),
    "neuron_overlap": lambda p, q: (
        ((p > 0) & (q > 0)).sum() / np.sqrt((p > 0).sum() * (q > 0).sum())
    ),
    "raw_overlap": cosine_of,
}


def reference(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    function = REFERENCES[name]
    return np.array([[function(p, q) for q in b] for p in a])


def per_position(deep: np.ndarray) -> np.ndarray:
    """[M, L, 2, P, H, K] -> float64 [M, P, L * 2 * H * K]."""
    tokens = np.moveaxis(np.float64(deep), 3, 1)
    return tokens.reshape(*tokens.shape[:2], -1)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_metrics_equal_float64_references(rng, name, scale):
    a, b = (
        np.float32(scale * rng.normal(0.2, 1, size=(M, 5, 48))) for M in (4, 6)
    )
    expected = reference(name, np.float64(a), np.float64(b))
    assert np.ptp(expected) > 1e-3
    ours = METRICS[name](a, b)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_sums_over_a_real_models_widths_are_exact_enough(rng, name):
    """ON of BERT-base reads 12 layers of 3072 neurons."""
    a = np.float32(rng.normal(0.2, 1, size=(3, 2, 12 * 3072 // 2)))
    expected = reference(name, np.float64(a), np.float64(a))
    np.testing.assert_allclose(METRICS[name](a, a), expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*METRICS} - {"raw_overlap"}))
def test_deep_prompts_are_read_position_by_position(rng, name):
    a, b = (
        rng.normal(0.2, 1, size=(M, 2, 2, 5, 3, 4)).astype(np.float32)
        for M in (3, 2)
    )
    expected = reference(name, per_position(a), per_position(b))
    np.testing.assert_allclose(METRICS[name](a, b), expected, atol=1e-6)


@pytest.mark.parametrize("name", ANY_ORDER)
def test_prompts_of_two_lengths_compare_where_positions_are_averaged(rng, name):
    a, b = (np.float32(rng.normal(size=(2, P, 8))) for P in (3, 6))
    expected = reference(name, np.float64(a), np.float64(b))
    np.testing.assert_allclose(METRICS[name](a, b), expected, atol=1e-6)


def test_activation_similarity_is_the_cosine(rng):
    a, b = (np.float32(rng.normal(size=(M, 16))) for M in (4, 6))
    expected = reference("e_concat", np.float64(a), np.float64(b))
    ours = similarity.activation_similarity(a, b)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_neuron_overlap_counts_common_active_neurons():
    a = jnp.asarray([[[1.0, 2.0, -1.0, 0.0]], [[1.0, -2.0, -1.0, -0.5]]])
    # {0, 1} and {0}: 1 common of sqrt(2 * 1).
    np.testing.assert_allclose(
        similarity.neuron_overlap(a, a),
        [[1.0, 0.5**0.5], [0.5**0.5, 1.0]],
        atol=1e-6,
    )


def test_neuron_overlap_of_torchs_neurons(minilm_folder, rng):
    """On MiniLM's weights behind deep prompts, against hooks on torch."""
    backbone = load_backbone("minilm-l6")
    c = backbone.config
    shape = (3, c.layers, 2, 7, c.heads, c.head_dim)
    prompts = rng.normal(size=shape).astype(np.float32)
    tokens = np.array([backbone.tokenizer.empty_ids], np.int32)
    probe = jax.jit(steps.probe, static_argnames="config")
    ours = np.stack(
        [
            probe(backbone.params, tokens, 0 * tokens, vectors, config=c)[
                "neurons"
            ][:, 0]
            for vectors in prompts
        ]
    )
    model = BertModel.from_pretrained(minilm_folder).eval()
    caught: list[torch.Tensor] = []
    hooks = [
        layer.intermediate.register_forward_hook(
            lambda module, inputs, output: caught.append(output[0, 0])
        )
        for layer in model.encoder.layer
    ]
    for vectors in torch.tensor(prompts):
        cache = torch_bert.cache_of(vectors, 1)
        length = tokens.shape[1]
        with torch.no_grad():
            model(
                input_ids=torch.tensor(tokens, dtype=torch.long),
                attention_mask=torch.ones(1, 7 + length),
                position_ids=torch.arange(length)[None] + 7,
                use_cache=True,
                **torch_bert.as_past(model, cache),
            )
    for hook in hooks:
        hook.remove()
    theirs = torch.stack(caught).numpy().reshape(ours.shape)
    # Rounding decides whether a neuron next to 0 counts.
    clear = np.abs(theirs) > 1e-5
    assert clear.mean() > 0.97
    ours, theirs = ours * clear, theirs * clear
    assert np.array_equal(ours > 0, theirs > 0)
    expected = reference("neuron_overlap", theirs, theirs)
    assert expected.min() < 0.9
    np.testing.assert_allclose(
        similarity.neuron_overlap(ours, ours), expected, atol=1e-6
    )
    layers = slice(2, 4)
    np.testing.assert_allclose(
        similarity.neuron_overlap(ours[:, layers], ours[:, layers]),
        reference("neuron_overlap", theirs[:, layers], theirs[:, layers]),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", METRICS)
@hypothesis.given(PROMPTS, PROMPTS)
@EXAMPLES
def test_values_are_bounded_and_symmetric(name, a, b):
    values = np.asarray(METRICS[name](a, b))
    assert np.isfinite(values).all()
    assert (values <= 1).all()
    assert (values >= LOWEST.get(name, 0)).all()
    np.testing.assert_allclose(values, METRICS[name](b, a).T, atol=1e-6)


@pytest.mark.parametrize("name", ONE_ON_ITSELF)
@hypothesis.given(PROMPTS)
@EXAMPLES
def test_a_prompt_is_1_on_itself(name, a):
    own = np.diag(np.asarray(METRICS[name](a, a)))
    # What a cosine reads may be all zeros: it is 0 then.
    read = {
        "e_avg": np.float64(a).mean(1),
        "neuron_overlap": np.maximum(a, 0),
        "distance_concat": np.ones((3, 1)),
    }.get(name, a)
    largest = np.abs(read).reshape(3, -1).max(1)
    clear = largest > 1e-5 * np.abs(a).max((1, 2))
    np.testing.assert_allclose(own[clear], 1.0, atol=1e-5)
    zero = np.abs(a).max((1, 2)) == 0
    np.testing.assert_array_equal(own[zero], float(name in DISTANCES))


def test_average_metrics_are_not_1_on_themselves(rng):
    """A prompt's positions lie apart; one that sits between scores higher."""
    a = np.float32(rng.normal(size=(1, 4, 8)))
    middle = np.repeat(a.mean(1, keepdims=True), 4, axis=1)
    for name in ("token_pairs", "distance_average"):
        own, between = np.asarray(
            METRICS[name](a, np.concatenate([a, middle]))
        )[0]
        assert own < 0.9
        assert own < between
        together = np.repeat(a[:, :1], 4, axis=1)
        np.testing.assert_allclose(METRICS[name](together, together), 1.0)


@pytest.mark.parametrize("name", ANY_ORDER)
@hypothesis.given(PROMPTS, PROMPTS, st.permutations(range(4)))
@EXAMPLES
def test_the_order_of_positions_does_not_matter(name, a, b, order):
    # Sums that cancel exactly in one order need not in another.
    a, b = a + 2e3, b - 2e3
    np.testing.assert_allclose(
        METRICS[name](a[:, order], b), METRICS[name](a, b), atol=1e-5
    )


@pytest.mark.parametrize("name", COSINES)
@hypothesis.given(PROMPTS, PROMPTS, st.sampled_from([2.0, 2.0**20, 2.0**40]))
@EXAMPLES
def test_cosines_have_no_scale(name, a, b, scale):
    # Powers of 2 above 1, so that scaling rounds nothing.
    np.testing.assert_allclose(
        METRICS[name](a * np.float32(scale), b),
        METRICS[name](a, b),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", METRICS)
@hypothesis.given(hnp.arrays(np.float32, (6, 3, 4), elements=FINITE))
@EXAMPLES
def test_gram_matrices_have_no_negative_eigenvalue(name, a):
    gram = np.asarray(METRICS[name](a, a), np.float64)
    assert np.linalg.eigvalsh((gram + gram.T) / 2).min() > -1e-5


@pytest.mark.parametrize("name", METRICS)
def test_zero_and_huge_prompts_give_no_nan(rng, name):
    ordinary = np.float32(rng.normal(size=(1, 4, 6)))
    largest = np.finfo(np.float32).max
    prompts = np.concatenate(
        [
            0 * ordinary,
            ordinary,
            1e30 * ordinary,
            -1e30 * ordinary,
            np.full_like(ordinary, largest),
            np.full_like(ordinary, -largest),
            1e-30 * ordinary,
        ]
    )
    values = np.asarray(METRICS[name](prompts, prompts))
    assert np.isfinite(values).all()
    if name in COSINES:
        np.testing.assert_array_equal(values[0], 0)
        np.testing.assert_allclose(values[2], values[1], atol=1e-5)
        opposite = 0.0 if name == "neuron_overlap" else -1.0
        np.testing.assert_allclose(values[4, 4:6], [1, opposite], atol=1e-6)
    else:
        assert values[2, 3] < 1e-20


def test_distances_of_huge_prompts_are_still_distances(rng):
    a, b = np.float32(1e20 * rng.normal(size=(2, 2, 4, 6)))
    for name in DISTANCES:
        expected = reference(name, np.float64(a), np.float64(b))
        np.testing.assert_allclose(METRICS[name](a, b), expected, rtol=1e-5)


def test_gradient_alignment_is_the_cosine_with_descent(rng):
    sources, starts, gradients = (
        np.float32(rng.normal(size=(M, 2, 2, 5, 3, 4))) for M in (4, 3, 3)
    )
    expected = [
        [cosine_of(p - s, -g) for s, g in zip(starts, gradients, strict=True)]
        for p in np.float64(sources)
    ]
    ours = similarity.gradient_alignment(
        sources, starts=starts, gradients=gradients
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    steps_down = starts - 0.1 * gradients
    ours = similarity.gradient_alignment(
        steps_down, starts=starts, gradients=1e30 * gradients
    )
    np.testing.assert_allclose(np.diag(ours), 1.0, atol=1e-6)


def test_gradient_alignment_gives_no_nan(rng):
    ordinary = np.float32(rng.normal(size=(1, 4, 6)))
    largest = np.full_like(ordinary, np.finfo(np.float32).max)
    prompts = np.concatenate([0 * ordinary, ordinary, largest, -largest])
    values = np.asarray(
        similarity.gradient_alignment(
            prompts, starts=prompts, gradients=prompts[[1, 0, 2, 3]]
        )
    )
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 1).all()
    np.testing.assert_array_equal(np.diag(values), 0)
    np.testing.assert_array_equal(values[:, 1], 0)
    np.testing.assert_allclose(values[3, 2], 1.0, atol=1e-6)


def test_unknown_readout_names_the_nearest():
    with pytest.raises(UserError, match="pooled"):
        similarity.check_readout("pooler")
