"""Every text lies whole in one row, rows in parts, and nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panda_jax.data import packing

LENGTHS = st.lists(st.integers(0, 200), min_size=1, max_size=60)


def real(lengths):
    return {n for n, length in enumerate(lengths) if length}


def check(parts, lengths):
    seen = []
    for part in parts:
        used = np.zeros((part.rows, part.width), int)
        for slot in part.slots:
            end = slot.start + lengths[slot.text]
            assert end <= part.width
            used[slot.row, slot.start : end] += 1
            seen.append(slot.text)
        assert used.max() == 1
        for row in range(part.rows):
            here = [s.number for s in part.slots if s.row == row]
            assert sorted(here) == list(range(len(here)))
            assert len(here) <= packing.most_texts(part.width)
    assert sorted(seen) == sorted(real(lengths))


@given(LENGTHS)
def test_every_text_lies_in_one_place(lengths):
    if not any(lengths):
        lengths = [1]
    packer = packing.packer(np.array(lengths), 16)
    parts = packer.parts(lengths)
    check(parts, lengths)
    sizes = [part.rows * part.width for part in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert {part.width for part in parts} <= set(packer.widths)
    assert packer.parts(lengths) == parts


@given(st.lists(st.integers(0, 90), min_size=1, max_size=700))
def test_any_number_of_texts_lies_in_parts_of_one_size(lengths):
    if not any(lengths):
        lengths = [1]
    parts = list(packing.packer(np.array(lengths), 16).blocks(lengths))
    check(parts, lengths)
    shapes = {(part.width, part.rows) for part in parts}
    assert len(shapes) == len({width for width, _ in shapes})


@pytest.mark.parametrize("mean", [9, 13, 30, 60, 100])
def test_most_of_what_is_computed_is_text(mean):
    draw = np.random.default_rng(mean)
    lengths = np.clip(draw.lognormal(np.log(mean), 0.4, 960), 3, 128)
    lengths = lengths.astype(int)
    packer = packing.packer(lengths, 16)
    shapes, shares = set(), []
    for batch in lengths.reshape(60, 16).tolist():
        parts = packer.parts(batch)
        computed = sum(part.rows * part.width for part in parts)
        shares.append(sum(batch) / computed)
        shapes |= {(part.rows, part.width) for part in parts}
    assert np.mean(shares) > 0.75
    assert len(shapes) <= 8


def test_texts_of_one_length_are_not_made_longer():
    packer = packing.packer(np.full(100, 128), 16)
    assert packer.base == 128
    parts = packer.parts([128] * 16)
    assert sum(part.rows * part.width for part in parts) == 16 * 128


def test_a_row_longer_than_all_widths_is_one_of_its_own():
    longest = packing.WIDTHS[-1] + 7
    packer = packing.packer(np.array([5, 9, longest]), 3)
    parts = packer.parts([5, 9, longest])
    check(parts, [5, 9, longest])
    assert packer.widths[-1] == longest


def test_the_arrays_of_a_part():
    slots = (packing.Slot(1, 0, 0, 0), packing.Slot(0, 0, 1, 5))
    part = packing.Part(2, 12, slots)
    tokens = [np.array([7, 8]), np.array([4, 5, 6])]
    segments = [np.array([0, 1]), np.array([0, 0, 1])]
    found = packing.packed(part, tokens, segments, prompt=2, offset=1)
    np.testing.assert_array_equal(
        found.tokens, [[0, 0, 4, 5, 6, 0, 0, 7, 8, 0, 0, 0], [0] * 12]
    )
    np.testing.assert_array_equal(
        found.segments[0], [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    )
    np.testing.assert_array_equal(
        found.text, [[0] * 5 + [1] * 4 + [-1] * 3, [-1] * 12]
    )
    np.testing.assert_array_equal(
        found.position[0], [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]
    )
    np.testing.assert_array_equal(found.read, [[1, 6], [0, 0]])


def test_the_targets_of_a_part_are_shifted_text_by_text():
    slots = (packing.Slot(1, 0, 0, 0), packing.Slot(0, 0, 1, 5))
    part = packing.Part(1, 12, slots)
    found = packing.targets(part, [np.array([7, 1]), np.array([4, 5, 1])])
    np.testing.assert_array_equal(found.labels, [[4, 5, 1, 7, 1, 0, 0, 0]])
    np.testing.assert_array_equal(found.tokens, [[0, 4, 5, 0, 7, 0, 0, 0]])
    np.testing.assert_array_equal(found.text, [[0, 0, 0, 1, 1, -1, -1, -1]])
    np.testing.assert_array_equal(found.position, [[0, 1, 2, 0, 1, 0, 0, 0]])


def test_lengths_end_with_the_last_id():
    rows = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(packing.lengths_of(rows), [3, 0, 4])
