"""Generators of two-sentence rows for the built-in tasks.

Both sentences are renderings of a `_Fact` (who did what to whom), so a label
follows from the facts, whatever the words.
"""

import dataclasses
import random

from panda_jax.tasks import lexicon as lex

Texts = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Fact:
    """Who did what to whom: the meaning behind one sentence of a pair."""

    agent: str
    verb: str
    patient: str
    adjective: str = ""
    place: str = ""

    def text(
        self, *, passive: bool = False, negated: bool = False, the: bool = True
    ) -> str:
        """The fact as a sentence in the past tense."""
        noun = f"{self.adjective} {self.patient}".strip()
        agent, patient = (
            f"the {phrase}" if the else lex.article(phrase)
            for phrase in (self.agent, noun)
        )
        base, _, past, participle, _ = lex.VERBS[self.verb]
        if passive:
            said = f"was {'not ' * negated}{participle} by {agent}"
            words = f"{patient} {said} {self.place}"
        else:
            said = f"did not {base}" if negated else past
            words = f"{agent} {said} {patient} {self.place}"
        return lex.sentence(words.strip())

    def swapped(self) -> "_Fact":
        """The same deed with the roles exchanged."""
        return dataclasses.replace(self, agent=self.patient, patient=self.agent)


def _fact(rng: random.Random, *, people: bool) -> _Fact:
    agent, patient = rng.sample(lex.PEOPLE, 2)
    if not people:
        patient = rng.choice(lex.KINDS[rng.choice(lex.THINGS)])
    kind = rng.randrange(3)
    return _Fact(
        agent=agent,
        verb=rng.choice(lex.ON_PEOPLE if people else lex.ON_THINGS),
        patient=patient,
        adjective=rng.choice(list(lex.SAME_ADJECTIVE)) if kind == 0 else "",
        place=f"in {rng.choice(lex.WHERE)}" if kind == 1 else "",
    )


def _general(rng: random.Random, fact: _Fact) -> _Fact:
    """A fact that `fact` entails: a kind for a noun, or a detail less."""
    ways = [
        {"agent": lex.KIND_OF[fact.agent]},
        {"patient": lex.KIND_OF[fact.patient]},
    ]
    if fact.adjective or fact.place:
        ways.append({"adjective": "", "place": ""})
    return dataclasses.replace(fact, **rng.choice(ways))


def _conflict(rng: random.Random, fact: _Fact) -> _Fact:
    """A fact with as many details, of which one is another."""
    if fact.patient in lex.PEOPLE and rng.random() < 0.4:
        return fact.swapped()
    if rng.random() < 0.5:
        return dataclasses.replace(fact, agent=_sibling(rng, fact.agent))
    return dataclasses.replace(fact, patient=_sibling(rng, fact.patient))


def _sibling(rng: random.Random, noun: str) -> str:
    return rng.choice([n for n in lex.KINDS[lex.KIND_OF[noun]] if n != noun])


def _entails(first: _Fact, second: _Fact) -> bool:
    """Whether `second` is `first` with more general nouns or fewer details."""
    nouns = ((first.agent, second.agent), (first.patient, second.patient))
    details = (
        (first.adjective, second.adjective),
        (first.place, second.place),
    )
    return (
        first.verb == second.verb
        and all(b in (a, lex.KIND_OF.get(a)) for a, b in nouns)
        and all(b in (a, "") for a, b in details)
    )


def entailment(rng: random.Random, label: int) -> Texts:
    """Does the second follow from the first: kinds, details and roles."""
    first = _fact(rng, people=rng.random() < 0.5)
    second = _conflict(rng, first) if label == 0 else first
    if rng.random() < 0.75:
        second = _general(rng, second)
    if label == 0 and rng.random() < 0.3:
        first, second = _general(rng, first), first
    passive = rng.random() < 0.5, rng.random() < 0.5
    if _entails(first, second) != (label == 1):
        return entailment(rng, label)
    return (
        first.text(passive=passive[0], the=False),
        second.text(passive=passive[1], the=False),
    )


def _same_meaning(rng: random.Random, fact: _Fact) -> _Fact:
    return dataclasses.replace(
        fact,
        verb=lex.SYNONYMS.get(fact.verb, fact.verb),
        adjective=lex.SAME_ADJECTIVE.get(fact.adjective, "")
        if rng.random() < 0.5
        else fact.adjective,
    )


def paraphrase(rng: random.Random, label: int) -> Texts:
    """Same words or synonyms, active or passive: who did it to whom?"""
    fact = _fact(rng, people=rng.random() < 0.6)
    passive = rng.random() < 0.5, rng.random() < 0.5
    second = _same_meaning(rng, fact)
    if label == 0:
        second = _conflict(rng, second)
    return fact.text(passive=passive[0]), second.text(passive=passive[1])


def contradiction(rng: random.Random, label: int) -> Texts:
    """Can both be true: negation and opposites, alone or cancelling out."""
    negated = rng.random() < 0.5
    if rng.random() < 0.5:
        fact = _fact(rng, people=rng.random() < 0.5)
        other = _same_meaning(rng, fact)
        denied = negated != (label == 1)
        if label == 0 and rng.random() < 0.5:
            other, denied = _conflict(rng, other), not negated
        return (
            fact.text(passive=rng.random() < 0.5, negated=negated),
            other.text(passive=rng.random() < 0.5, negated=denied),
        )
    thing = rng.choice(lex.KINDS[rng.choice(lex.THINGS)])
    whose = f"the {thing} of the {rng.choice(lex.PEOPLE)}"
    adjective = rng.choice(list(lex.OPPOSITES))
    opposite = rng.random() < 0.5
    if opposite:
        # Neither big nor small can be true: only one side may be denied.
        negated = negated and label == 0
    denied = negated != ((label == 1) != opposite)
    if opposite:
        second = lex.OPPOSITES[adjective]
    else:
        second = rng.choice(
            (adjective, lex.SAME_ADJECTIVE.get(adjective, adjective))
        )
    first = f"{whose} was {'not ' * negated}{adjective}"
    return (
        lex.sentence(first),
        lex.sentence(f"{whose} was {'not ' * denied}{second}"),
    )
