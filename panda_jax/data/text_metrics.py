"""Scores of answers that are texts or tags of words; `metrics` names them."""

import collections
import re
import string
from collections.abc import Callable, Iterable, Sequence

from panda_jax.errors import UserError

Span = tuple[str, int, int]

_PREDICATE = ("V", "C-V")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_f1(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> float:
    """Mean over questions of the F1 between the words of two answers, 0 to 1.

    Of the accepted answers the one that scores best counts.  As in SQuAD's
    evaluate-v1.1.py and ReCoRD's official script, which say 0 to 100.

    Raises:
      UserError: a question without a list of accepted answers.
    """
    return _best_of(targets, predictions, _word_f1)


def answer_exact_match(
    targets: Sequence[Sequence[str]], predictions: Sequence[str]
) -> float:
    """The share of answers that equal an accepted one, 0 to 1.

    Case, punctuation, articles and white space do not count.  As in SQuAD's
    evaluate-v1.1.py and ReCoRD's official script, which say 0 to 100.

    Raises:
      UserError: a question without a list of accepted answers.
    """
    return _best_of(
        targets, predictions, lambda a, b: float(_words(a) == _words(b))
    )


def span_f1(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> float:
    """F1 over the spans of all sentences together, 0 to 1.

    A span is right when type, first and last word are.  Spans are read as by
    `tag_spans`; 0 where neither side has any.  As conlleval, which says 0 to
    100, and as seqeval's `f1_score`.

    Args:
      targets: a sentence each, the tag names of its words: `O`, `B-x`, `I-x`.
      predictions: as `targets`.

    Raises:
      UserError: a sentence whose sides are not equally long, or another tag.
    """
    return _span_f1(targets, predictions, without=())


def role_f1(
    targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> float:
    """F1 over the roles of all sentences together, 0 to 1.

    `span_f1` without the predicate, V and its C-V, as in the official
    srl-eval.pl (CoNLL-2005), which says 0 to 100.  It differs in that it joins
    a continuation C-X to its X and counts the two as one argument, where here,
    as in evaluations on tags, each is an argument of its own.

    Raises:
      UserError: as `span_f1`.
    """
    return _span_f1(targets, predictions, without=_PREDICATE)


def tag_spans(tags: Iterable[str]) -> list[Span]:
    """Spans (type, start, end), end exclusive, of one sentence's tag names.

    Ill-formed tags are read as conlleval and seqeval's default mode do: an
    `I-x` that does not go on a span of type x begins one.

    Raises:
      UserError: a tag that is not `O`, `B-x` or `I-x`.
    """
    spans = []
    open_type, start = "", 0
    for position, tag in enumerate((*tags, "O")):
        place, _, kind = tag.partition("-")
        if tag != "O" and not (place in ("B", "I") and kind):
            raise UserError(
                f"Unknown tag {tag!r} of word {position}, expected 'O', or "
                "'B-' or 'I-' and a type."
            )
        if place == "I" and kind == open_type:
            continue
        if open_type:
            spans.append((open_type, start, position))
        open_type, start = kind, position
    return spans


def _words(text: str) -> list[str]:
    """The words by which official scripts compare answers; their order counts.

    Punctuation goes before articles, so that "a-b" is the one word "ab".
    """
    text = text.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(accepted: str, prediction: str) -> float:
    """0 where no word is shared, so also for two answers without any word."""
    right, found = _words(accepted), _words(prediction)
    shared = collections.Counter(right) & collections.Counter(found)
    return 2 * shared.total() / max(len(right) + len(found), 1)


def _best_of(
    targets: Sequence[Sequence[str]],
    predictions: Sequence[str],
    score: Callable[[str, str], float],
) -> float:
    total = 0.0
    for row, (accepted, guess) in enumerate(
        zip(targets, predictions, strict=True)
    ):
        if isinstance(accepted, str) or not len(accepted):
            raise UserError(
                f"Question {row} has the accepted answers {accepted!r}, "
                "expected a list of at least one text."
            )
        total += max(score(answer, guess) for answer in accepted)
    return total / len(targets)


def _span_f1(
    targets: Sequence[Sequence[str]],
    predictions: Sequence[Sequence[str]],
    *,
    without: Sequence[str],
) -> float:
    shared = total = 0
    for row, (tags, guesses) in enumerate(
        zip(targets, predictions, strict=True)
    ):
        if len(tags) != len(guesses):
            raise UserError(
                f"Sentence {row} has {len(tags)} tags and {len(guesses)} "
                "predicted ones, expected one a word on both sides."
            )
        right, found = (
            {span for span in tag_spans(side) if span[0] not in without}
            for side in (tags, guesses)
        )
        shared += len(right & found)
        total += len(right) + len(found)
    return 2 * shared / total if total else 0.0
