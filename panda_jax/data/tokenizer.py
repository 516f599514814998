"""WordPiece tokenization over the Hugging Face `tokenizers` library."""

import functools
import hashlib
import json
import pathlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence

import tokenizers

from panda_jax.data import wordpiece
from panda_jax.data.wordpiece import ROLES, SPECIALS
from panda_jax.errors import UserError
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

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        where: str,
        roles: Mapping[str, str] = ROLES,
    ) -> None:
        """Wraps `inner`.

        Args:
          inner: of the library; texts are neither cut nor padded by it.
          where: names its origin in error messages.
          roles: the tokens that are put around texts, by what they are for.

        Raises:
          UserError: a special token is missing, or padding is not id 0.
        """
        inner.no_truncation()
        inner.no_padding()
        names = [roles[role] for role in ("pad", "unk", "cls", "sep")]
        found = [inner.token_to_id(name) for name in names]
        missing = [
            name for name, i in zip(names, found, strict=True) if i is None
        ]
        if missing:
            raise UserError(
                f"{where} lacks the token {' and '.join(missing)}; expected a "
                "BERT WordPiece vocabulary with [PAD], [UNK], [CLS] and [SEP]."
            )
        if found[0] != 0:
            raise UserError(
                f"{where} gives {names[0]} the id {found[0]}, expected 0: "
                "batches are padded with zeros."
            )
        self._inner = inner
        self._roles = dict(roles)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            i for i in found if i is not None
        )
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

        What `tokenizer_config.json` and its like say is honoured as
        transformers honours it (`wordpiece`).

        Raises:
          UserError: neither file is there, one is broken, or a setting would
            make other ids than are made here; by name.
        """
        folder = pathlib.Path(path)
        inner, roles, where = made = wordpiece.read(folder)
        found = cls(inner, where=where, roles=roles)
        wordpiece.check(made, folder)
        return found

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
        about = [known, self.encode(_SHOWS)]
        unusual = self._unusual()
        if unusual:
            about.append(unusual)
        text = json.dumps(about)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _unusual(self) -> dict[str, object]:
        """What the texts may not show, where it is not as in a BERT."""
        found = wordpiece.unusual(self._inner)
        roles = {k: self._roles[k] for k in ("pad", "unk", "cls", "sep")}
        if any(ROLES[role] != token for role, token in roles.items()):
            found["roles"] = roles
        return found

    @property
    def empty_ids(self) -> list[int]:
        """Ids of an input without any text: [CLS] [SEP]."""
        return [self.cls_id, self.sep_id]

    @functools.cached_property
    def word_ids(self) -> list[int]:
        """Ids of words and their pieces: neither special nor `[unused9]`."""
        pieces = self._inner.get_vocab().items()
        added = self._inner.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        return sorted(
            i
            for piece, i in pieces
            if i not in special and not re.fullmatch(r"\[\w+\]", piece)
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
    inner = wordpiece.of_pieces(vocabulary)
    return Tokenizer(inner, where="The built-in vocabulary")
