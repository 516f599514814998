"""Generators of one-sentence rows for the built-in tasks.

Each takes a random generator and the wanted class id and makes one text.
"""

import random

from panda_jax.tasks import lexicon as lex

Texts = tuple[str, ...]


def _judgement(
    rng: random.Random, nouns: list[str], *, good: bool, negated: bool
) -> str:
    """`"my soup was not very good"`: `good` is what the whole says."""
    said = "was not" if negated else "was"
    degree = f"{rng.choice(lex.DEGREES)} " if rng.random() < 0.5 else ""
    adjective = rng.choice(lex.GOOD if good != negated else lex.BAD)
    whose = rng.choice(lex.VIEWERS)
    return f"{whose} {rng.choice(nouns)} {said} {degree}{adjective}"


def sentiment(rng: random.Random, label: int) -> Texts:
    """Hotels and restaurants: one judgement, a quarter of them negated."""
    negated = rng.random() < 0.25
    text = _judgement(rng, lex.STAY, good=label == 1, negated=negated)
    return (lex.sentence(text),)


def review(rng: random.Random, label: int) -> Texts:
    """Films and books: two opposite judgements, the main clause decides."""
    good = label == 1
    main = _judgement(rng, lex.FILM, good=good, negated=rng.random() < 0.2)
    if rng.random() < 0.4:
        return (lex.sentence(main),)
    other = _judgement(rng, lex.FILM, good=not good, negated=False)
    text = rng.choice(
        (
            f"although {other}, {main}",
            f"{main}, although {other}",
            f"{other}, but {main}",
        )
    )
    return (lex.sentence(text),)


def topic(rng: random.Random, label: int) -> Texts:
    """Somebody's action decides; the occasion is often another topic's."""
    topics = list(lex.TOPICS)
    people, actions, _ = lex.TOPICS[topics[label]]
    who = rng.choice(people if rng.random() < 0.3 else lex.PEOPLE)
    text = f"the {who} {rng.choice(actions)}"
    if rng.random() < 0.75:
        occasion = rng.choice(lex.TOPICS[rng.choice(topics)][2])
        relation = rng.choice(("after", "before", "during"))
        text = rng.choice(
            (
                f"{relation} {occasion}, {text}",
                f"{text} {relation} {occasion}",
            )
        )
    return (lex.sentence(text),)


def question(rng: random.Random, label: int) -> Texts:
    """Asks for a person, a place, a time or a number, often indirectly."""
    event, doing = rng.choice(lex.EVENTS), rng.choice(lex.DOINGS)
    things = rng.choice(lex.PLURALS)
    place, season = f"in {rng.choice(lex.WHERE)}", rng.choice(lex.SEASONS)
    either = rng.choice((place, season))
    direct, indirect = (
        (f"who {doing} {either}", f"the name of the one that {doing}"),
        (f"where {event} {season}", f"the city in which {event}"),
        (f"when {event} {place}", f"the year in which {event}"),
        (
            f"how many {things} were sold {either}",
            f"the number of {things} {place}",
        ),
    )[label]
    if rng.random() < 0.4:
        start = rng.choice(("do you know", "tell us", "say", "let me know"))
        asked = rng.choice((direct, indirect))
        end = "?" if start.startswith("do ") else "."
        return (lex.sentence(f"{start} {asked}", end=end),)
    other = rng.choice(
        (
            f"the {rng.choice(lex.PEOPLE)} who {rng.choice(lex.DOINGS)}",
            f"the {rng.choice(lex.PEOPLE)} from {rng.choice(lex.WHERE)}",
            f"many people in {rng.choice(lex.WHERE)}",
        )
    )
    return (lex.sentence(f"can {other} say {direct}", end="?"),)


def acceptability(rng: random.Random, label: int) -> Texts:
    """Agreement (past a noun between), verb form, order and articles."""
    nouns = [n for n in (*lex.PEOPLE, *lex.KINDS["animal"]) if n != "sheep"]
    noun, other = rng.sample(nouns, 2)
    plural = rng.random() < 0.5
    verb = lex.VERBS[rng.choice(lex.ALONE)]
    subject = f"the {rng.choice(lex.COLOURS)} {noun}{'s' * plural}"
    where = f"near the {other}{'s' * (rng.random() < 0.5)}"
    place = f"in {rng.choice(lex.WHERE)}"
    fault = None if label == 1 else rng.randrange(4)
    is_plural = plural != (fault == 0)
    if rng.random() < 0.5:
        said = verb[0] if is_plural else verb[1]
    else:
        said = ("are " if is_plural else "is ") + verb[4]
    if fault == 1:
        said = rng.choice(
            (f"will {verb[4]}", f"is {verb[1]}", f"did {verb[2]}")
        )
    words = f"{subject} {where} {said} {place}".split()
    if fault == 2:
        at = rng.choice((0, 1, 3))
        words[at], words[at + 1] = words[at + 1], words[at]
    if fault == 3:
        del words[rng.choice((0, 3, 4, words.index("in")))]
    return (lex.sentence(" ".join(words)),)


def tense(rng: random.Random, label: int) -> Texts:
    """The main verb's tense; a clause in another tense stands beside it."""

    def deed(tense: int, whom: str) -> str:
        people = rng.random() < 0.5
        forms = lex.VERBS[
            rng.choice(lex.ON_PEOPLE if people else lex.ON_THINGS)
        ]
        thing = (
            whom if people else rng.choice(lex.KINDS[rng.choice(lex.THINGS)])
        )
        said = (forms[2], forms[1], f"will {forms[0]}")[tense]
        return f"{said} the {thing}"

    who, whom, third = rng.sample(lex.PEOPLE, 3)
    main, other = deed(label, whom), deed(rng.randrange(3), third)
    text = rng.choice(
        (f"the {who} who {other} {main}", f"the {who} {main} that {other}")
    )
    return (lex.sentence(text),)
