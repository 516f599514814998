"""WordPiece tokenization over the Hugging Face `tokenizers` library."""

import functools
import hashlib
import json
import pathlib
import re
import string
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from panda_jax.errors import UserError
from panda_jax.interop.folders import inside, json_inside
from panda_jax.io import files

# Vocabularies have gaps; the library walks through them to write them down.
_MOST_IDS = 1 << 20
# Case, accents (composed and not), CJK, controls, blanks, punctuation, numbers,
# long words, and special tokens in the text.
_SHOWS = (
    "The quick Brown FOX didn't jump: 3.14, 1,000 & co-op e-mail@host!",
    "Caf\u00e9 na\u00efve e\u0301le\u0300ve \u0130stanbul stra\u00dfe",
    "\u6771\u4eac\u30bf\u30ef\u30fc \ud55c\uad6d \u4e2d\u6587and latin",
    "tab\tnew\nline\u00a0hard\u200bzero\ufeff\u0000 ``quotes'' \u201ccurly",
    "[CLS] [MASK] [SEP] <s> </s> " + "x" * 120,
)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def truncated_lengths(a: int, b: int, budget: int) -> tuple[int, int]:
    """How many tokens of a pair stay when `budget` tokens fit.

    The closed form of Hugging Face's fast `longest_first`: the longer text is
    cut first; when both are longer than half, each keeps half and the longer
    one (the second on a tie) the odd token.

    Args:
      a: tokens of the first text.
      b: tokens of the second text.
      budget: tokens that fit, special tokens not counted.
    """
    if a + b <= budget:
        return a, b
    short, long = min(a, b), max(a, b)
    long = short if short > budget else max(short, budget - short)
    if short + long > budget:
        short, long = budget // 2, budget // 2 + budget % 2
    return (long, short) if a > b else (short, long)


class Tokenizer:
    """A WordPiece vocabulary with BERT's special tokens.

    Attributes:
      pad_id, unk_id, cls_id, sep_id: ids of the special tokens; `pad_id` is 0.
      vocab_size: V, one more than the highest id.
      fingerprint: short sha256 of the whole definition (vocabulary and
        normalization): equal fingerprints give equal tokens.
    """

    def __init__(self, inner: tokenizers.Tokenizer, *, where: str) -> None:
        """Wraps `inner`; `where` names its origin in error messages.

        Raises:
          UserError: a special token is missing, or padding is not id 0.
        """
        inner.no_truncation()
        inner.no_padding()
        found = {name: inner.token_to_id(name) for name in SPECIALS[:4]}
        ids = {name: i for name, i in found.items() if i is not None}
        missing = [name for name in found if name not in ids]
        if missing:
            raise UserError(
                f"{where} lacks the token {' and '.join(missing)}; expected a "
                "BERT WordPiece vocabulary with [PAD], [UNK], [CLS] and [SEP]."
            )
        if ids["[PAD]"] != 0:
            raise UserError(
                f"{where} gives [PAD] the id {ids['[PAD]']}, expected 0: "
                "batches are padded with zeros."
            )
        self._inner = inner
        self.pad_id = ids["[PAD]"]
        self.unk_id = ids["[UNK]"]
        self.cls_id = ids["[CLS]"]
        self.sep_id = ids["[SEP]"]
        # Ids may have gaps, and the highest needs an embedding.
        known = inner.get_vocab().values()
        self.vocab_size = max(known) + 1
        if self.vocab_size > max(_MOST_IDS, 2 * len(known)):
            raise UserError(
                f"{where} has {len(known)} pieces with ids up to "
                f"{self.vocab_size - 1}: copy it again from the model it "
                "belongs to."
            )
        definition = inner.to_str().encode()
        self.fingerprint = hashlib.sha256(definition).hexdigest()[:16]

    @classmethod
    def from_folder(cls, path: files.PathLike) -> "Tokenizer":
        """Reads a Hugging Face folder: `tokenizer.json`, else `vocab.txt`.

        With `vocab.txt`, `do_lower_case` comes from `tokenizer_config.json`
        (default true).

        Raises:
          UserError: neither file is there, or one is broken.
        """
        folder = pathlib.Path(path)
        whole = inside(folder, "tokenizer.json")
        words = inside(folder, "vocab.txt")
        if whole.is_file():
            text = _read_text(whole)
            try:
                inner = tokenizers.Tokenizer.from_str(text)
                inner.encode("Is this known: \u2603?")  # some fail only now
            except Exception as error:  # the library raises bare Exception
                raise UserError(
                    f"The tokenizer file '{whole}' is broken: {error}. Copy "
                    "it again from the model it belongs to."
                ) from None
            return cls(inner, where=f"The tokenizer file '{whole}'")
        if not words.is_file():
            raise UserError(
                f"No tokenizer in '{folder}': expected 'tokenizer.json' or "
                "'vocab.txt' there, as Hugging Face ships them."
            )
        lines = _read_text(words).split("\n")
        vocabulary = [line.rstrip("\r") for line in lines]
        while vocabulary and not vocabulary[-1]:
            vocabulary.pop()
        return cls(
            _wordpiece(vocabulary, lowercase=_lowercase(folder)),
            where=f"The vocabulary file '{words}'",
        )

    @classmethod
    def builtin(cls) -> "Tokenizer":
        """A small vocabulary that needs no files, for random-weight models.

        It covers the lexicon of the built-in tasks word by word and all other
        printable ASCII text character by character.
        """
        return _builtin()

    @functools.cached_property
    def identity(self) -> str:
        """16 hex digits that a prompt is bound to.

        Over the pieces and what they make of a text that shows every rule of
        normalization, not over the definition's JSON as `fingerprint` is: a
        newer `tokenizers` may write the same rules in other words.
        """
        known = sorted(self._inner.get_vocab().items())
        about = json.dumps([known, self.encode(_SHOWS)])
        return hashlib.sha256(about.encode()).hexdigest()[:16]

    @property
    def empty_ids(self) -> list[int]:
        """Ids of an input without any text: [CLS] [SEP]."""
        return [self.cls_id, self.sep_id]

    @functools.cached_property
    def word_ids(self) -> list[int]:
        """Ids of words and their pieces: neither special nor `[unused9]`."""
        pieces = self._inner.get_vocab().items()
        return sorted(
            i for piece, i in pieces if not re.fullmatch(r"\[\w+\]", piece)
        )

    def save(self, folder: files.PathLike) -> None:
        """Writes `tokenizer.json`, which `from_folder` reads back."""
        path = pathlib.Path(folder) / "tokenizer.json"
        files.write_text(path, self._inner.to_str(pretty=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Word-piece ids of each text; no special tokens, nothing cut."""
        return [
            encoding.ids
            for encoding in self._inner.encode_batch(
                list(texts), add_special_tokens=False
            )
        ]

    def encode_with_offsets(
        self, texts: Sequence[str]
    ) -> list[tuple[list[int], list[int], list[int]]]:
        """As `encode`, with where each piece begins and ends in its text.

        Returns:
          (ids, starts, ends) of each text; in characters, end exclusive.
        """
        return [
            (
                encoding.ids,
                [start for start, _ in encoding.offsets],
                [end for _, end in encoding.offsets],
            )
            for encoding in self._inner.encode_batch(
                list(texts), add_special_tokens=False
            )
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; padding is dropped, other special tokens show."""
        kept = [int(i) for i in ids if i != self.pad_id]
        return self._inner.decode(kept, skip_special_tokens=False)

    def pair(
        self,
        a_ids: Sequence[int],
        b_ids: Sequence[int] | None,
        max_length: int,
    ) -> tuple[list[int], list[int]]:
        """`[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]`, cut longest first.

        Args:
          a_ids: ids of the first text.
          b_ids: ids of the second text, None where the task has one text.
          max_length: most tokens of the result, special tokens included.

        Returns:
          (tokens, segments), equally long; segments are 0 up to the first
          `[SEP]` and 1 after it.

        Raises:
          UserError: `max_length` leaves no room for a token of each text.
        """
        specials = 2 if b_ids is None else 3
        if max_length < 2 * specials - 1:
            raise UserError(
                f"max_length is {max_length}, expected at least "
                f"{2 * specials - 1}: room for the special tokens and text."
            )
        budget = max_length - specials
        if b_ids is None:
            first = [self.cls_id, *a_ids[:budget], self.sep_id]
            return first, [0] * len(first)
        a, b = truncated_lengths(len(a_ids), len(b_ids), budget)
        first = [self.cls_id, *a_ids[:a], self.sep_id]
        second = [*b_ids[:b], self.sep_id]
        return first + second, [0] * len(first) + [1] * len(second)


@functools.cache
def _builtin() -> Tokenizer:
    from panda_jax.tasks import lexicon

    shown = string.digits + string.ascii_lowercase + string.punctuation
    pieces = [*SPECIALS, *shown, *(f"##{c}" for c in shown)]
    vocabulary = list(dict.fromkeys([*pieces, *lexicon.words()]))
    inner = _wordpiece(vocabulary, lowercase=True)
    return Tokenizer(inner, where="The built-in vocabulary")


def _wordpiece(
    vocabulary: Sequence[str], *, lowercase: bool
) -> tokenizers.Tokenizer:
    """BERT's tokenizer over `vocabulary`, one piece an id."""
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    inner.add_special_tokens([name for name in SPECIALS if name in ids])
    return inner


def _lowercase(folder: pathlib.Path) -> bool:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return True
    config = json_inside(folder, path.name, what="tokenizer configuration")
    value = config.get("do_lower_case", True)
    if not isinstance(value, bool):
        raise UserError(
            f"The tokenizer configuration '{path}' has do_lower_case "
            f"{json.dumps(value)}, expected true or false."
        )
    return value


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The tokenizer file '{path}' cannot be read: {error}."
        ) from None
