"""The metrics against float64 references, and their promised properties."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from panda_jax import UserError, similarity

# XLA may take numbers below the smallest normal one for 0.
FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


def reference_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.float64(a), np.float64(b)
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / norms


def test_activation_similarity_is_the_cosine(rng):
    a, b = rng.normal(size=(4, 16)), rng.normal(size=(6, 16))
    ours = similarity.activation_similarity(
        a.astype(np.float32), b.astype(np.float32)
    )
    np.testing.assert_allclose(ours, reference_cosine(a, b), atol=1e-6)


def test_e_avg_of_deep_and_shallow_prompts(rng):
    shallow = rng.normal(size=(3, 5, 8)).astype(np.float32)
    expected = reference_cosine(shallow.mean(1), shallow.mean(1))
    np.testing.assert_allclose(
        similarity.e_avg(shallow, shallow), expected, atol=1e-6
    )
    deep = rng.normal(size=(3, 2, 2, 5, 4, 6)).astype(np.float32)
    flat = deep.mean(3).reshape(3, -1)
    np.testing.assert_allclose(
        similarity.e_avg(deep, deep), reference_cosine(flat, flat), atol=1e-6
    )
    shuffled = deep[:, :, :, rng.permutation(5)]
    np.testing.assert_allclose(
        similarity.e_avg(shuffled, deep),
        similarity.e_avg(deep, deep),
        atol=1e-6,
    )


def test_neuron_overlap_counts_common_active_neurons():
    a = jnp.asarray([[[1.0, 2.0, -1.0, 0.0]], [[1.0, -2.0, -1.0, -0.5]]])
    # {0, 1} and {0}: 1 common of sqrt(2 * 1).
    np.testing.assert_allclose(
        similarity.neuron_overlap(a, a),
        [[1.0, 0.5**0.5], [0.5**0.5, 1.0]],
        atol=1e-6,
    )


@hypothesis.given(
    hnp.arrays(np.float32, (3, 7), elements=FINITE),
    hnp.arrays(np.float32, (2, 7), elements=FINITE),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_cosine_is_bounded_symmetric_and_never_nan(a, b):
    values = np.asarray(similarity.cosine(a, b))
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 1).all()
    np.testing.assert_allclose(
        values, np.asarray(similarity.cosine(b, a)).T, atol=1e-6
    )
    nonzero = np.abs(a).max(1) > 0
    own = np.diag(np.asarray(similarity.cosine(a, a)))
    np.testing.assert_allclose(own[nonzero], 1.0, atol=1e-5)
    np.testing.assert_array_equal(own[~nonzero], 0.0)


def test_unknown_readout_names_the_nearest():
    with pytest.raises(UserError, match="pooled"):
        similarity.check_readout("pooler")
