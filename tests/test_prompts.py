"""The initialisers of prompts, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from panda_jax import errors, prompts

V, D = 40, 6


@pytest.fixture
def table(rng) -> np.ndarray:
    return rng.normal(size=(V, D)).astype(np.float32)


def _rows_of(table: np.ndarray, vectors: jax.Array) -> list[int]:
    """Which row of the table each vector is; fails for one that is none."""
    assert vectors.dtype == jnp.float32
    return [
        np.flatnonzero((table == vector).all(1)).item()
        for vector in np.asarray(vectors)
    ]


def _key(seed: int = 0) -> jax.Array:
    return jax.random.key(seed)


# --- Sampled vocabulary ---


def test_the_vocabulary_is_sampled_without_repetition(table):
    vectors = prompts.vocabulary_vectors(_key(), table, V)
    assert sorted(_rows_of(table, vectors)) == list(range(V))
    vectors = prompts.vocabulary_vectors(_key(), table, 7, population=9)
    rows = _rows_of(table, vectors)
    assert len({*rows}) == 7
    assert max(rows) < 9


def test_the_same_key_draws_the_same_rows(table):
    draws = [
        _rows_of(table, prompts.vocabulary_vectors(_key(seed), table, 10))
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_a_prompt_longer_than_the_population_repeats(table):
    vectors = prompts.vocabulary_vectors(_key(), table, 30, population=4)
    assert {*_rows_of(table, vectors)} == {0, 1, 2, 3}


def test_only_given_ids_are_drawn(table):
    ids = [39, 5, 17, 21]
    vectors = prompts.vocabulary_vectors(_key(), table, 4, ids=ids)
    assert sorted(_rows_of(table, vectors)) == sorted(ids)


def test_every_row_is_as_likely(table):
    counts = np.zeros(V)
    for seed in range(60):
        vectors = prompts.vocabulary_vectors(_key(seed), table, 20)
        counts[_rows_of(table, vectors)] += 1
    # Binomial(60, 1/2): mean 30, standard deviation 3.9.
    assert 12 < counts.min() <= counts.max() < 48


def test_the_draw_is_that_of_google_research_prompt_tuning(table):
    # Their from_sample_of_embeddings: choice(rng, population, (P,), False).
    index = jax.random.choice(_key(3), 25, (8,), False)
    vectors = prompts.vocabulary_vectors(_key(3), table, 8, population=25)
    np.testing.assert_array_equal(vectors, table[index])


def test_a_table_in_bfloat16(table):
    short = jnp.asarray(table, jnp.bfloat16)
    vectors = prompts.vocabulary_vectors(_key(), short, 5)
    assert len(_rows_of(np.asarray(short, np.float32), vectors)) == 5


# --- Class labels and text ---


def test_labels_come_first_and_pieces_are_averaged(table):
    labels = [[7], [1, 2, 30], [39, 39]]
    vectors = prompts.label_vectors(_key(), table, 8, labels, population=20)
    expected = np.stack([table[pieces].mean(0) for pieces in labels])
    np.testing.assert_allclose(vectors[:3], expected, rtol=1e-6)
    drawn = prompts.vocabulary_vectors(_key(), table, 8, population=20)
    np.testing.assert_array_equal(vectors[3:], drawn[3:])


def test_as_many_labels_as_positions(table):
    vectors = prompts.label_vectors(_key(), table, 2, [[3], [4]])
    assert _rows_of(table, vectors) == [3, 4]


@pytest.mark.parametrize(("length", "kept"), [(2, 2), (4, 4), (9, 4)])
def test_a_text_is_cropped_or_filled_up(table, length, kept):
    text = [30, 2, 2, 39]
    vectors = prompts.text_vectors(_key(), table, length, text, ids=[8, 9, 10])
    rows = _rows_of(table, vectors)
    assert rows[:kept] == text[:kept]
    assert {*rows[kept:]} <= {8, 9, 10}
    assert len(rows) == length


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda t: prompts.vocabulary_vectors(_key(), t, 0), "length 0"),
        (
            lambda t: prompts.vocabulary_vectors(_key(), t, 3, population=0),
            "from 0 embeddings",
        ),
        (
            lambda t: prompts.vocabulary_vectors(_key(), t, 3, ids=[]),
            "from 0 embeddings",
        ),
        (
            lambda t: prompts.vocabulary_vectors(_key(), t, 3, ids=[1, V]),
            "Id 40 is not in a table of 40 embeddings",
        ),
        (
            lambda t: prompts.text_vectors(_key(), t, 3, [2, -1]),
            "Id -1 is not in a table",
        ),
        (
            lambda t: prompts.label_vectors(_key(), t, 3, [[2], [V + 5, 0]]),
            "Id 45 is not in a table",
        ),
        (
            lambda t: prompts.label_vectors(_key(), t, 3, [[2], []]),
            "Label 1 has no pieces",
        ),
        (
            lambda t: prompts.label_vectors(_key(), t, 1, [[2], [3]]),
            "2 labels do not fit a prompt of length 1",
        ),
    ],
)
def test_what_cannot_be_drawn(table, make, match):
    with pytest.raises(errors.UserError, match=match):
        make(table)


# --- From a stored prompt ---


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("length", [1, 3, 5, 8])
def test_a_stored_prompt_is_cropped_or_padded(rng, kind, length):
    axis = 2 if kind == "deep" else 0

    def shape(P: int) -> tuple[int, ...]:
        return prompts.prompt_shape(kind, P, layers=2, width=D, heads=3)

    stored = rng.normal(size=shape(5)).astype(np.float32)
    fill = prompts.normal_vectors(_key(), shape(length))
    got = prompts.resized_vectors(stored, length, fill=fill)
    assert got.shape == shape(length)
    assert got.dtype == jnp.float32
    for position in range(length):
        source = stored if position < 5 else np.asarray(fill)
        np.testing.assert_array_equal(
            np.asarray(got).take(position, axis), source.take(position, axis)
        )


def test_a_filling_of_another_shape(rng):
    stored = rng.normal(size=(5, D)).astype(np.float32)
    for shape in ((7, D), (8, D + 1), (2, 2, 8, 3, 2)):
        with pytest.raises(errors.UserError, match=r"\[8, 6\] at length 8"):
            prompts.resized_vectors(stored, 8, fill=np.zeros(shape))


# --- Shapes ---


def test_shapes():
    sizes = {"layers": 3, "width": 12, "heads": 2}
    assert prompts.prompt_shape("deep", 4, **sizes) == (3, 2, 4, 2, 6)
    assert prompts.prompt_shape("shallow", 4, **sizes) == (4, 12)
    # T5's heads need not fill its width.
    shape = prompts.prompt_shape("deep", 4, **sizes, head_dim=64)
    assert shape == (3, 2, 4, 2, 64)
    with pytest.raises(errors.UserError, match="length is -1"):
        prompts.prompt_shape("deep", -1, **sizes)
    with pytest.raises(errors.UserError, match="kind 'wide'"):
        prompts.prompt_shape("wide", 1, **sizes)


# --- What kind it is ---


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_kind_and_length_stay_when_prompts_are_stacked(kind):
    """The kind is said, not read off the number of axes."""
    shape = prompts.prompt_shape(kind, 4, layers=3, width=6, heads=2)
    one = prompts.Prompt(np.zeros(shape, np.float32), {})
    assert (one.kind, one.length) == (kind, 4)
    for count in (1, 3):
        many = jax.tree.map(lambda *x: np.stack(x), *[one] * count)
        assert (many.kind, many.length) == (kind, 4)
        lengths = jax.vmap(lambda p: jnp.full((), p.length))(
            jax.tree.map(jnp.asarray, many)
        )
        assert lengths.tolist() == [4] * count
        given = prompts.Prompt(many.vectors, {}, kind)
        assert given.length == 4
        with pytest.raises(errors.UserError, match="kind='deep' or"):
            prompts.Prompt(many.vectors, {})


def test_two_kinds_are_two_structures():
    """So that no transformation takes one for the other."""
    deep = prompts.Prompt(np.zeros((1, 2, 3, 2, 4)), {})
    shallow = prompts.Prompt(np.zeros((3, 8)), {})
    assert jax.tree.structure(deep) != jax.tree.structure(shallow)
