"""The rows of the built-in tasks, made by a seed from a grammar and a lexicon.

Nothing is read from disk or network.  A generator makes the text for a wanted
label, so labels are balanced; a row's own hash says which split it may be in,
so no row is ever in both.  The tasks share skills by design (negation, word
roles, synonyms, verb forms): their specifications say which.
"""

import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable

from panda_jax.tasks import offline_pairs as pairs
from panda_jax.tasks import offline_single as single

SIZES = {"train": 2000, "validation": 256, "test": 256}
Texts = tuple[str, ...]
Row = dict[str, str | int]


@functools.cache
def rows(name: str, split: str, *, seed: int = 0) -> tuple[Row, ...]:
    """All rows of a split: the same on every machine and Python version.

    Args:
      name: a key of `GENERATORS`.
      split: `"train"` (2000 rows), `"validation"` or `"test"` (256 each).
      seed: another seed gives other rows of the same task; a train row of
        one seed is never a validation row of another.

    Returns:
      Rows with `sentence`, or `sentence1` and `sentence2`, and the class id
      `label`; labels differ in count by at most one.
    """
    generate, classes = GENERATORS[name]
    rng = random.Random(f"{name}/{split}/{seed}")
    made: dict[Texts, int] = {}
    # Test rows are of validation's kind that were not taken for it: those two
    # splits came first, and stay what they are.
    kind, taken = split, set()
    if split == "test":
        kind = "validation"
        for row in rows(name, kind, seed=seed):
            taken.add(tuple(str(x) for n, x in row.items() if n != "label"))
    label = itertools.cycle(range(classes))
    wanted = next(label)
    while len(made) < SIZES[split]:
        texts = generate(rng, wanted)
        repeats = texts in made or len(set(texts)) < len(texts)
        if repeats or texts in taken or _split_of(texts) != kind:
            continue
        made[texts] = wanted
        wanted = next(label)
    order = list(made)
    rng.shuffle(order)
    fields = ("sentence",) if len(order[0]) == 1 else ("sentence1", "sentence2")
    return tuple(
        dict(zip(fields, texts, strict=True)) | {"label": made[texts]}
        for texts in order
    )


@functools.cache
def fingerprint(name: str, split: str) -> str:
    """sha256 of a split's rows: changes whenever grammar or lexicon do."""
    text = json.dumps(rows(name, split), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _split_of(texts: Texts) -> str:
    digest = hashlib.sha256("\t".join(texts).encode()).digest()
    return "validation" if digest[0] % 4 == 0 else "train"


GENERATORS: dict[str, tuple[Callable[[random.Random, int], Texts], int]] = {
    "toy_sentiment": (single.sentiment, 2),
    "toy_review": (single.review, 2),
    "toy_topic": (single.topic, 4),
    "toy_question": (single.question, 4),
    "toy_acceptability": (single.acceptability, 2),
    "toy_tense": (single.tense, 3),
    "toy_entailment": (pairs.entailment, 2),
    "toy_paraphrase": (pairs.paraphrase, 2),
    "toy_contradiction": (pairs.contradiction, 2),
}
