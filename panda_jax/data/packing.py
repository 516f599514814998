"""Texts of a batch laid end to end: packed rows, in parts of few shapes.

A batch of short texts, padded to the longest of its split, is mostly padding.
Here its texts are put into rows of one width, several to a row, by first fit
from the longest down; rows are put together into parts, which are what a
program computes at a time.  All is NumPy, and depends on the texts' lengths
alone: a resumed run packs as the first one did.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Of rows; a text longer than the last gets a row of its own length.
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# Rows of a part.
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
# Positions of a part: more are no faster, and are held until its way back.
_POSITIONS = 256
# What attention costs beside the rest: a position of a row so wide is taken to
# be twice as dear as one of a narrow row.
_WIDE = 900
# Texts among which first fit looks for room: of more it takes too long.
_BLOCK = 256
# Texts that the choice of a width looks at.
_LOOKED_AT = 512


class Slot(NamedTuple):
    """Where a text of a batch lies in a part.

    Attributes:
      text: its number in the batch.
      row: of the part.
      number: among the row's texts.
      start: its first position in the row.
    """

    text: int
    row: int
    number: int
    start: int


class Part(NamedTuple):
    """Rows that are computed together.

    Attributes:
      rows: R, some of which may be empty.
      width: W, of a row.
      slots: its texts.
    """

    rows: int
    width: int
    slots: tuple[Slot, ...]


@dataclasses.dataclass(frozen=True)
class Packer:
    """How the texts of a data set are packed.

    Attributes:
      base: the width of most rows.
      longest: of the texts.
    """

    base: int
    longest: int

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """The base, and what holds texts that are longer."""
        widest = next((w for w in WIDTHS if w >= self.longest), self.longest)
        return tuple(sorted({self.base, max(self.base, widest)}))

    def parts(self, lengths: Sequence[int]) -> list[Part]:
        """Where the texts of a batch lie; the largest part first.

        Args:
          lengths: positions of each text, 0 for one that is left out.
        """
        return _grouped(_first_fit(lengths, self.widths))

    def blocks(self, lengths: Sequence[int]) -> Iterator[Part]:
        """Where any number of texts lie, in parts of one size a width.

        Args:
          lengths: as of `parts`.
        """
        for begin in range(0, len(lengths), _BLOCK):
            rows = _first_fit(lengths[begin : begin + _BLOCK], self.widths)
            for part in _grouped(rows, whole=True):
                slots = tuple(
                    slot._replace(text=slot.text + begin) for slot in part.slots
                )
                yield part._replace(slots=slots)


def most_texts(width: int) -> int:
    """How many texts a row of this width holds at most."""
    return max(1, width * 3 // 16)


def packer(lengths: np.ndarray, batch: int) -> Packer:
    """The cheapest base width for batches of these texts.

    Args:
      lengths: positions of each text of the data set, a prompt's included
        where each text carries it.
      batch: texts of a batch.
    """
    longest = int(lengths.max(initial=1))
    draw = np.random.default_rng(0)
    size = min(batch, len(lengths), _BLOCK)
    looked_at = [
        draw.choice(lengths, size, replace=False).tolist()
        for _ in range(-(-_LOOKED_AT // size))
    ]
    widest = next((w for w in WIDTHS if w >= longest), longest)
    bases = [w for w in WIDTHS if w < widest] + [widest]
    # A base that hardly any text fits is no base.
    least = int(np.median(lengths)) if len(lengths) else 1
    tried = [Packer(base, longest) for base in bases if base >= least]
    return min(
        tried, key=lambda p: (sum(cost(p.parts(x)) for x in looked_at), p.base)
    )


def cost(parts: Sequence[Part]) -> float:
    """Positions that are computed, each weighed by what its row costs."""
    return sum(p.rows * p.width * (1 + p.width / _WIDE) for p in parts)


def _first_fit(
    lengths: Sequence[int], widths: Sequence[int]
) -> dict[int, list[list[tuple[int, int]]]]:
    """Width -> rows, each of (text, start)."""
    rows: dict[int, list[list[tuple[int, int]]]] = {w: [] for w in widths}
    order = sorted(
        (i for i, length in enumerate(lengths) if length),
        key=lambda i: (-lengths[i], i),
    )
    shortest = lengths[order[-1]] if order else 0
    # Room, width and texts of each row that another text may fit.
    opened: list[tuple[int, int, list[tuple[int, int]]]] = []
    for text in order:
        length = lengths[text]
        for at, (room, width, row) in enumerate(opened):  # noqa: B007
            if length <= room:
                break
        else:
            at = len(opened)
            width = next(w for w in widths if w >= length)
            room, row = width, []
            rows[width].append(row)
            opened.append((room, width, row))
        row.append((text, width - room))
        room -= length
        if room < shortest or len(row) == most_texts(width):
            del opened[at]
        else:
            opened[at] = room, width, row
    return rows


def _grouped(
    rows: dict[int, list[list[tuple[int, int]]]], *, whole: bool = False
) -> list[Part]:
    """Rows in parts, whose numbers of rows are of few kinds.

    Args:
      rows: by their width.
      whole: whether all parts of a width have as many rows.
    """
    parts = []
    for width, found in rows.items():
        if not found:
            continue
        most = max(2, _POSITIONS // width)
        count = math.ceil(len(found) / most)
        # Two threads compute two parts in the time of one.
        count = min(len(found), count + count % 2)
        size = next(n for n in _ROWS if n * count >= len(found))
        if whole:
            size = most
        for begin in range(0, len(found), size):
            slots = tuple(
                Slot(text, row, number, start)
                for row, texts in enumerate(found[begin : begin + size])
                for number, (text, start) in enumerate(texts)
            )
            left = min(size, len(found) - begin)
            here = size if whole else next(n for n in _ROWS if n >= left)
            parts.append(Part(here, width, slots))
    return sorted(parts, key=lambda p: -p.rows * p.width)


class Packed(NamedTuple):
    """A part's arrays, as models read them.

    Attributes:
      tokens: [R, W] int32, 0 where there is none.
      segments: likewise.
      text: [R, W] int32 the number of a position's text in its row, -1 for
        none.
      position: [R, W] int32 from 0 in each text, a shallow prompt's positions
        counted first.
      read: [R, S] int32 where each text is read.
    """

    tokens: np.ndarray
    segments: np.ndarray
    text: np.ndarray
    position: np.ndarray
    read: np.ndarray


def packed(
    part: Part,
    tokens: Sequence[np.ndarray],
    segments: Sequence[np.ndarray] | None = None,
    *,
    prompt: int = 0,
    offset: int = 0,
) -> Packed:
    """The arrays of a part.

    Args:
      part: where its texts lie.
      tokens: of each text of the batch, unpadded.
      segments: likewise; None for zeros.
      prompt: positions that each text carries before its own.
      offset: of the position where a text is read, from its first.
    """
    shape = (part.rows, part.width)
    ids, types, text, position = (
        np.full(shape, fill, np.int32) for fill in (0, 0, -1, 0)
    )
    read = np.zeros((part.rows, most_texts(part.width)), np.int32)
    for slot in part.slots:
        row, begin = slot.row, slot.start
        own = begin + prompt
        end = own + len(tokens[slot.text])
        ids[row, own:end] = tokens[slot.text]
        if segments is not None:
            types[row, own:end] = segments[slot.text]
        text[row, begin:end] = slot.number
        position[row, begin:end] = np.arange(end - begin)
        read[row, slot.number] = begin + offset
    return Packed(ids, types, text, position, read)


class Targets(NamedTuple):
    """A part's targets of text-to-text models.

    Attributes:
      tokens: [R, U] int32 what the decoder reads: each text's target shifted
        right.
      labels: [R, U] int32 what it is to say, 0 for nothing.
      text: [R, U] as in `Packed`.
      position: [R, U] from 0 in each target.
    """

    tokens: np.ndarray
    labels: np.ndarray
    text: np.ndarray
    position: np.ndarray


def targets(part: Part, labels: Sequence[np.ndarray]) -> Targets:
    """The targets of a part's texts, each row's end to end.

    Args:
      part: where its texts lie.
      labels: of each text of the batch, unpadded.
    """
    sizes = [0] * part.rows
    for slot in part.slots:
        sizes[slot.row] += len(labels[slot.text])
    longest = max(sizes)
    width = 8 if longest <= 8 else 1 << (longest - 1).bit_length()
    shape = (part.rows, width)
    ids, said, text, position = (
        np.full(shape, fill, np.int32) for fill in (0, 0, -1, 0)
    )
    ends = [0] * part.rows
    for slot in part.slots:
        own = labels[slot.text]
        begin, row = ends[slot.row], slot.row
        end = ends[row] = begin + len(own)
        said[row, begin:end] = own
        ids[row, begin + 1 : end] = own[:-1]
        text[row, begin:end] = slot.number
        position[row, begin:end] = np.arange(len(own))
    return Targets(ids, said, text, position)


def unpadded(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Each row of [B, T] without the zeros that it ends with."""
    for row, length in zip(rows, lengths_of(rows), strict=True):
        yield row[:length]


def lengths_of(rows: np.ndarray) -> np.ndarray:
    """[B] ids of each row of [B, T], without the zeros that it ends with."""
    real = rows != 0
    return np.where(
        real.any(1), rows.shape[1] - real[:, ::-1].argmax(1), 0
    ).astype(np.int64)
