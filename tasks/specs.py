"""The table of tasks: one readable specification each, in plain Python."""

from panda_jax.tasks.spec import TaskSpec

from panda_jax.errors import UserError, unknown_name

_SPECS: dict[str, TaskSpec] = {}


def register(spec: TaskSpec) -> TaskSpec:
    """Adds a task; registering an equal specification again does nothing.

    Raises:
      UserError: another task has the name, or the specification contradicts
        itself.
    """
    where = f"Task {spec.name!r}"
    if (spec.kind == "classification") != (len(spec.labels) >= 2):
        raise UserError(
            f"{where} is a {spec.kind} task with {len(spec.labels)} labels; "
            "classification takes at least 2, regression none."
        )
    if not spec.metrics:
        raise UserError(f"{where} names no metric, expected at least one.")
    wrong = set(spec.label_values.values()) - set(spec.labels)
    if wrong:
        raise UserError(
            f"{where} maps file labels to {sorted(wrong)}, which are not "
            f"among its labels {list(spec.labels)}."
        )
    if _SPECS.get(spec.name, spec) != spec:
        raise UserError(
            f"{where} is registered already with another specification; "
            "choose another name."
        )
    _SPECS[spec.name] = spec
    return spec


def get(name: str) -> TaskSpec:
    """The task called `name`.

    Raises:
      UserError: there is none; says the nearest names.
    """
    if name not in _SPECS:
        raise unknown_name("task", name, _SPECS)
    return _SPECS[name]


def names() -> list[str]:
    """All task ids, in the order of registration."""
    return list(_SPECS)


def _two(folder: str, train: str, validation: str) -> dict[str, tuple[str]]:
    return {
        "train": (f"{folder}/{train}",),
        "validation": (f"{folder}/{validation}",),
    }


for _spec in (
    TaskSpec(
        name="cb",
        description="CommitmentBank (SuperGLUE): does the text commit its "
        "author to the hypothesis?",
        text_a="{premise}",
        text_b="{hypothesis}",
        labels=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "f1"),
        reader="jsonl",
        files=_two("super_glue/CB", "train.jsonl", "val.jsonl"),
        tfds="super_glue/cb",
        target=True,
    ),
    TaskSpec(
        name="rte",
        description="Recognizing Textual Entailment (SuperGLUE): does the "
        "hypothesis follow from the premise?",
        text_a="{premise}",
        text_b="{hypothesis}",
        labels=("entailment", "not_entailment"),
        reader="jsonl",
        files=_two("super_glue/RTE", "train.jsonl", "val.jsonl"),
        tfds="super_glue/rte",
        target=True,
    ),
    TaskSpec(
        name="mrpc",
        description="Microsoft Research Paraphrase Corpus (GLUE): do two "
        "sentences of news mean the same?",
        text_a="{sentence1}",
        text_b="{sentence2}",
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        reader="tsv",
        files=_two("glue/MRPC", "train.tsv", "dev.tsv"),
        columns={
            "sentence1": "#1 String",
            "sentence2": "#2 String",
            "label": "Quality",
        },
        label_values={"0": "not_equivalent", "1": "equivalent"},
        tfds="glue/mrpc",
        target=True,
    ),
    TaskSpec(
        name="cola",
        description="Corpus of Linguistic Acceptability (GLUE): is the "
        "sentence grammatical English?",
        text_a="{sentence}",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        reader="tsv_plain",
        files=_two("glue/CoLA", "train.tsv", "dev.tsv"),
        columns={"label": 1, "sentence": 3},
        width=4,
        label_values={"0": "unacceptable", "1": "acceptable"},
        tfds="glue/cola",
        target=True,
    ),
    TaskSpec(
        name="sst2",
        description="Stanford Sentiment Treebank (GLUE): is the phrase of a "
        "film review positive?",
        text_a="{sentence}",
        labels=("negative", "positive"),
        reader="tsv",
        files=_two("glue/SST-2", "train.tsv", "dev.tsv"),
        label_values={"0": "negative", "1": "positive"},
        tfds="glue/sst2",
    ),
    TaskSpec(
        name="stsb",
        kind="regression",
        description="Semantic Textual Similarity Benchmark (GLUE): how alike "
        "are two sentences, from 0 to 5?",
        text_a="{sentence1}",
        text_b="{sentence2}",
        metrics=("pearson_spearman",),
        reader="tsv",
        files=_two("glue/STS-B", "train.tsv", "dev.tsv"),
        columns={"label": "score"},
        score_range=(0.0, 5.0),
        tfds="glue/stsb",
        target=True,
    ),
):
    register(_spec)

# The built-in tasks: name, labels, whether a pair, description.
for _name, _labels, _pair, _description in (
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
):
    register(
        TaskSpec(
            name=_name,
            description=f"Built in. {_description}",
            text_a="{sentence1}" if _pair else "{sentence}",
            text_b="{sentence2}" if _pair else None,
            labels=_labels,
            reader="offline",
        )
    )
