"""The built-in tasks, whose rows `tasks.offline` makes."""

from panda_jax.tasks.spec import TaskSpec

# Name, labels, whether a pair, description.
_TABLE = (
    (
        "toy_sentiment",
        ("negative", "positive"),
        False,
        "Judgements on hotels and meals, some negated. Should help "
        "toy_review (same adjectives, same negation).",
    ),
    (
        "toy_review",
        ("negative", "positive"),
        False,
        "Judgements on films and books; of two opposite ones the main "
        "clause decides. Should be helped by toy_sentiment.",
    ),
    (
        "toy_topic",
        ("sport", "food", "science", "money"),
        False,
        "What somebody did, on an occasion of another topic. Shares no "
        "skill with the pair tasks.",
    ),
    (
        "toy_question",
        ("person", "place", "time", "number"),
        False,
        "What an indirect question asks for. Shares little with any other "
        "built-in task.",
    ),
    (
        "toy_acceptability",
        ("unacceptable", "acceptable"),
        False,
        "Faults of agreement, verb form, word order or article. Shares verb "
        "forms with toy_tense, nothing with sentiment or topic.",
    ),
    (
        "toy_tense",
        ("past", "present", "future"),
        False,
        "The tense of the main verb beside a clause in another. Shares verb "
        "forms with toy_acceptability.",
    ),
    (
        "toy_entailment",
        ("not_entailment", "entailment"),
        True,
        "Kinds, details and roles: does the second sentence follow? Should "
        "be helped by toy_paraphrase and toy_contradiction.",
    ),
    (
        "toy_paraphrase",
        ("different", "same"),
        True,
        "Active or passive, with synonyms: same deed, same roles? Shares "
        "word roles with toy_entailment and toy_contradiction.",
    ),
    (
        "toy_contradiction",
        ("compatible", "contradiction"),
        True,
        "Negation and opposites, alone or cancelling out: can both be true? "
        "Shares roles with toy_paraphrase, negation with toy_sentiment.",
    ),
)

OFFLINE = tuple(
    TaskSpec(
        name=name,
        description=f"Built in. {description}",
        text_a="{sentence1}" if pair else "{sentence}",
        text_b="{sentence2}" if pair else None,
        labels=labels,
        reader="offline",
        rows={"train": 2000, "validation": 256},
    )
    for name, labels, pair, description in _TABLE
)
