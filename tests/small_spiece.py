"""Small SentencePiece models, numbered as T5's."""

import io
from collections.abc import Iterable
from typing import Any

import sentencepiece


def trained(texts: Iterable[str], size: int, **options: Any) -> bytes:
    """The content of a `spiece.model` of at most `size` pieces of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
        **options,
    )
    return model.getvalue()
