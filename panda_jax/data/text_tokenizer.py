"""The vocabularies of text-to-text models: SentencePiece, or plain bytes.

SentencePiece's own file is read by its own library.  Folders that have only
`tokenizer.json` are read by `tokenizers`, which made that file.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tokenizers

from panda_jax.data import tokenizer_files
from panda_jax.data.tokenizer_files import Settings
from panda_jax.errors import UserError
from panda_jax.interop.folders import inside
from panda_jax.io.files import PathLike, atomic_file, write_json, write_text

# ByT5's ids: padding, end and unknown come before the 256 bytes.
_BYTE_OFFSET = 3
SENTENCEPIECE_FILE = "spiece.model"
# How Hugging Face folders of ByT5 say that they need no vocabulary file.
_BYTES_CLASS = "ByT5Tokenizer"
# Classes that are not T5's and stand for what a tokenizer.json says.
_ANY = re.compile(r"(M?T5Tokenizer|PreTrainedTokenizer|Tokenizers\w+)(Fast)?")
_SENTINEL = re.compile(r"\u2581?<extra_id_\d+>")
_ROLES = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
# As in `tokenizer`, and what a Metaspace does at beginnings and after the end.
_SHOWS = (
    "The quick Brown FOX didn't jump:  3.14, 1,000 & co-op e-mail@host!",
    " Caf\u00e9 nai\u0308ve \u6771\u4eac\u30bf \ufb01ne \u00bd\u2460 \u2026",
    "tab\tnew\nline\u00a0hard\u200bzero ``quotes'' \u2581lower",
    "<pad> a</s>b </s> c <unk> <extra_id_0>.<extra_id_1> d\u2603",
)


class TextTokenizer:
    """Text to ids and back.

    By SentencePiece's own file the ids are those of SeqIO's vocabularies, in
    which the names of special tokens are text like any other; by
    `tokenizer.json` they are those of transformers.

    Attributes:
      path: of the SentencePiece model or `tokenizer.json`, None for bytes.
      inner: what reads `tokenizer.json`, else None.
      pad_id, eos_id, unk_id: 0, 1 and 2, as in every T5.
      fingerprint: short sha256 of the definition; equal fingerprints give
        equal ids.
    """

    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(
        self,
        path: pathlib.Path | None,
        content: bytes,
        inner: tokenizers.Tokenizer | None = None,
    ) -> None:
        """Use `from_file`, `from_folder` or `of_bytes`."""
        self.path = path
        self.inner = inner
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def of_bytes(cls) -> "TextTokenizer":
        """UTF-8 bytes, as in ByT5: needs no file, and loses nothing."""
        return cls(None, b"bytes")

    @classmethod
    def from_folder(cls, folder: PathLike) -> "TextTokenizer | None":
        """A model folder's own: `spiece.model`, `tokenizer.json`, or bytes.

        None where the folder has neither: T5X checkpoints name no vocabulary.

        Raises:
          UserError: a file is broken, or a setting would make other ids than
            are made here; by name.
        """
        folder = pathlib.Path(folder)
        pieces = inside(folder, SENTENCEPIECE_FILE)
        whole = inside(folder, tokenizer_files.WHOLE)
        found = tokenizer_files.settings(folder)
        if pieces.exists():
            own = cls.from_file(pieces)
            more = _check_pieces(own, found)
            if not more:
                return own
            if not whole.is_file():
                raise UserError(
                    f"'{folder}' adds the tokens {more[:5]} to its "
                    f"{SENTENCEPIECE_FILE}, which cannot hold them; expected a "
                    f"{tokenizer_files.WHOLE} with them. Save the tokenizer "
                    "again with transformers, which writes one."
                )
        elif found.made_for == _BYTES_CLASS:
            return cls.of_bytes()
        return cls._of_whole(whole, found) if whole.is_file() else None

    @classmethod
    def _of_whole(cls, path: pathlib.Path, found: Settings) -> "TextTokenizer":
        """The tokenizer of a `tokenizer.json`, with what is added to it."""
        inner = tokenizer_files.whole(path)
        where = f"The tokenizer file '{path}'"
        tokenizer_files.add(inner, tokenizer_files.added(found), where=where)
        roles = {role: found.token(role) or _ROLES[role] for role in _ROLES}
        ids = [inner.token_to_id(token) for token in roles.values()]
        if ids != [0, 1, 2]:
            raise UserError(
                f"{where} has the ids {ids} for {', '.join(roles.values())}, "
                "expected [0, 1, 2] as in T5."
            )
        _check_whole(inner, found, where=where)
        about = [
            json.loads(inner.to_str())["model"],
            sorted(inner.get_vocab().items()),
            tokenizer_files.unusual(inner, ()),
            [encoding.ids for encoding in inner.encode_batch(_SHOWS)],
        ]
        return cls(path.resolve(), json.dumps(about).encode(), inner)

    @classmethod
    def from_file(cls, path: PathLike) -> "TextTokenizer":
        """A SentencePiece model, a `tokenizer.json`, or a folder with either.

        Raises:
          UserError: no such file, or it is no model of T5's kind.
        """
        file = pathlib.Path(path).expanduser()
        if file.is_dir():
            whole = file / tokenizer_files.WHOLE
            file = file / SENTENCEPIECE_FILE
            file = whole if whole.is_file() and not file.exists() else file
        if file.name == tokenizer_files.WHOLE:
            return cls._of_whole(file, tokenizer_files.settings(file.parent))
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"The SentencePiece model '{file}' cannot be read: {error}. "
                f"Expected T5's {SENTENCEPIECE_FILE} or a folder with it."
            ) from None
        tokenizer = cls(file.resolve(), content)
        pieces = tokenizer._pieces
        try:
            pieces.id_to_piece(list(range(tokenizer.vocab_size)))
        except UnicodeDecodeError as error:
            raise UserError(
                f"The SentencePiece model '{file}' has a piece that is no text "
                f"({error}). Copy it again from its model."
            ) from None
        found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
        if found != (0, 1, 2):
            raise UserError(
                f"The SentencePiece model '{file}' has the ids {found} for "
                "padding, end and unknown, expected (0, 1, 2) as in T5."
            )
        return tokenizer

    @property
    def identity(self) -> str:
        """What a prompt is bound to: `fingerprint`."""
        return self.fingerprint

    @property
    def empty_ids(self) -> list[int]:
        """Ids of an input without any text: the end."""
        return [self.eos_id]

    @property
    def vocab_size(self) -> int:
        """V, the number of ids that it can give."""
        if self.path is None:
            return _BYTE_OFFSET + 256
        if self.inner is not None:
            return max(self.inner.get_vocab().values()) + 1
        return self._pieces.get_piece_size()

    def save(self, folder: PathLike) -> None:
        """Writes what `from_folder` reads back."""
        folder = pathlib.Path(folder)
        if self.path is None:
            settings = {"tokenizer_class": _BYTES_CLASS}
            write_json(folder / tokenizer_files.CONFIG, settings)
            return
        if self.inner is not None:
            text = self.inner.to_str(pretty=True)
            write_text(folder / tokenizer_files.WHOLE, text)
            return
        target = folder / SENTENCEPIECE_FILE
        with atomic_file(target) as temporary:
            temporary.write_bytes(self.path.read_bytes())

    @functools.cached_property
    def _pieces(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(
                model_file=str(self.path)
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"'{self.path}' is no SentencePiece model: {error}. Copy it "
                "again from the model that it belongs to."
            ) from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without the end's."""
        if self.path is None:
            return [[b + _BYTE_OFFSET for b in text.encode()] for text in texts]
        if self.inner is not None:
            return [
                encoding.ids
                for encoding in self.inner.encode_batch(
                    list(texts), add_special_tokens=False
                )
            ]
        return self._pieces.encode(list(texts))

    def written(self, text: str) -> str:
        """A text as a model of this vocabulary can write it at best."""
        return self.decode(self.encode([text])[0])

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end; padding is dropped."""
        kept = []
        for i in ids:
            if i == self.eos_id:
                break
            kept += [int(i)] if i != self.pad_id else []
        if self.inner is not None:
            added = self.inner.get_added_tokens_decoder()
            textless = {i for i, x in added.items() if x.special} - {
                self.unk_id
            }
            kept = [i for i in kept if i not in textless]
            return self.inner.decode(kept, skip_special_tokens=False)
        if self.path is not None:
            # Ids past the vocabulary are T5's sentinels, which have no text.
            known = self._pieces.get_piece_size()
            return self._pieces.decode([i for i in kept if i < known])
        codes = [i - _BYTE_OFFSET for i in kept]
        return bytes(b for b in codes if 0 <= b < 256).decode(errors="replace")


def _check_pieces(own: TextTokenizer, found: Settings) -> list[str]:
    """Refuses settings that `spiece.model` cannot be read by.

    Returns:
      Tokens that are added beyond its pieces and T5's sentinels.
    """
    made_for = found.made_for
    if made_for is not None and not _ANY.fullmatch(made_for):
        raise found.wrong(
            "tokenizer_class", f"T5Tokenizer, to read {SENTENCEPIECE_FILE} by"
        )
    if found.values.get("add_prefix_space") is False:
        raise found.wrong("add_prefix_space", "true, or nothing")
    if found.values.get("sp_model_kwargs"):
        raise found.wrong("sp_model_kwargs", "none: pieces are not sampled")
    own_names = set()
    for role, i in (("pad", 0), ("eos", 1), ("unk", 2)):
        piece = own._pieces.id_to_piece(i)
        if (found.token(role) or piece) != piece:
            raise found.wrong(f"{role}_token", f"{piece!r}, its piece {i}")
        own_names.add(piece)
    tokens = [token.content for _, token in tokenizer_files.added(found)]
    tokens += tokenizer_files.listed(found.folder)
    return [
        token
        for token in dict.fromkeys(tokens)
        if not _SENTINEL.fullmatch(token) and token not in own_names
    ]


def _check_whole(
    inner: tokenizers.Tokenizer, found: Settings, *, where: str
) -> None:
    """Refuses settings that differ from what `tokenizer.json` does."""
    count = found.values.get("extra_ids")
    if count is not None:
        has = sum(bool(_SENTINEL.fullmatch(x)) for x in inner.get_vocab())
        if count != has:
            raise found.wrong("extra_ids", f"{has}, as the tokenizer has them")
    space = found.values.get("add_prefix_space")
    (ids,), (bare,) = (
        [e.ids for e in inner.encode_batch([x], add_special_tokens=False)]
        for x in (" a", "a")
    )
    if space is not None and space != (ids == bare):
        raise found.wrong(
            "add_prefix_space", f"{ids == bare}, as the tokenizer has it"
        )
    if inner.post_processor is not None:
        got = inner.encode("a").ids
        if got != [*bare, TextTokenizer.eos_id]:
            raise UserError(
                f"{where} has a post_processor that makes {got} of a text of "
                f"the ids {bare}, expected it and the end: it is not a T5's."
            )
