"""The vocabularies of text-to-text models: SentencePiece, or plain bytes."""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from panda_jax.errors import UserError
from panda_jax.interop.folders import inside, json_inside
from panda_jax.io.files import PathLike, atomic_file, write_json

# ByT5's ids: padding, end and unknown come before the 256 bytes.
_BYTE_OFFSET = 3
SENTENCEPIECE_FILE = "spiece.model"
# How Hugging Face folders of ByT5 say that they need no vocabulary file.
_SETTINGS_FILE = "tokenizer_config.json"
_BYTES_CLASS = "ByT5Tokenizer"


class TextTokenizer:
    """Text to ids and back, the same ids as SeqIO's vocabularies give.

    Attributes:
      path: the SentencePiece model, or None for bytes.
      pad_id, eos_id, unk_id: 0, 1 and 2, as in every T5.
      fingerprint: short sha256 of the definition; equal fingerprints give
        equal ids.
    """

    pad_id, eos_id, unk_id = 0, 1, 2

    def __init__(self, path: pathlib.Path | None, content: bytes) -> None:
        """Use `from_file` or `of_bytes`."""
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def of_bytes(cls) -> "TextTokenizer":
        """UTF-8 bytes, as in ByT5: needs no file, and loses nothing."""
        return cls(None, b"bytes")

    @classmethod
    def from_folder(cls, folder: PathLike) -> "TextTokenizer | None":
        """A model folder's own: `spiece.model`, or bytes if it says so.

        None where the folder has neither: T5X checkpoints name no vocabulary.
        """
        folder = pathlib.Path(folder)
        if (folder / SENTENCEPIECE_FILE).exists():
            return cls.from_file(inside(folder, SENTENCEPIECE_FILE))
        if (folder / _SETTINGS_FILE).is_file():
            found = json_inside(
                folder, _SETTINGS_FILE, what="tokenizer configuration"
            )
            if found.get("tokenizer_class") == _BYTES_CLASS:
                return cls.of_bytes()
        return None

    @classmethod
    def from_file(cls, path: PathLike) -> "TextTokenizer":
        """A SentencePiece model, or the folder that holds `spiece.model`.

        Raises:
          UserError: no such file, or it is no model of T5's kind.
        """
        file = pathlib.Path(path).expanduser()
        if file.is_dir():
            file = file / SENTENCEPIECE_FILE
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
        return self._pieces.get_piece_size()

    def save(self, folder: PathLike) -> None:
        """Writes what `from_folder` reads back."""
        if self.path is None:
            settings = {"tokenizer_class": _BYTES_CLASS}
            write_json(pathlib.Path(folder) / _SETTINGS_FILE, settings)
            return
        target = pathlib.Path(folder) / SENTENCEPIECE_FILE
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
        if self.path is not None:
            # Ids past the vocabulary are T5's sentinels, which have no text.
            known = self._pieces.get_piece_size()
            return self._pieces.decode([i for i in kept if i < known])
        codes = [i - _BYTE_OFFSET for i in kept]
        return bytes(b for b in codes if 0 <= b < 256).decode(errors="replace")
