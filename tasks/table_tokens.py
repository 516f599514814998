"""The tasks answered by words of the text: spans of answers, entities, roles.

Sources of the inventories of types: CoNLL-2003 and CoNLL-2005 shared tasks,
SpERT's CoNLL04, and OntoNotes 5 as in the CoNLL-2012 shared task.
"""

from panda_jax.tasks.spec import TaskSpec


def _roles(prefix: str, numbered: str, modifiers: str) -> tuple[str, ...]:
    """Every role, alone, as a reference (R-) and as a continuation (C-).

    The training files do not name all that the others use, so the inventory
    is composed and not counted.
    """
    core = [f"{prefix}{x}" for x in numbered]
    core += [f"{prefix}M-{x}" for x in modifiers.split()]
    core += [f"{prefix}M"]
    linked = [f"{link}-{role}" for link in "RC" for role in core]
    return ("V", "C-V", "R-V", *core, *linked)


def _conll12(*folders: str) -> dict[str, tuple[str]]:
    """The shared task's files: joined into one, in folders, or as shipped."""
    shipped = "conll-2012/v4/data/{0}/data/english/**/*gold_conll"
    found = {}
    names = {"train": "train", "validation": "development", "test": "test"}
    for split, name in names.items():
        places = [
            f"{folder}/{name}{tail}"
            for folder in folders
            for tail in (
                ".gold_conll",
                # Beside English, LDC ships Arabic and Chinese.
                "/**/english/**/*gold_conll",
                "/**/*gold_conll",
            )
        ]
        found[split] = ("|".join([*places, shipped.format(name)]),)
    return found


# fmt: off
_ONTONOTES = (
    "CARDINAL", "DATE", "EVENT", "FAC", "GPE", "LANGUAGE", "LAW", "LOC",
    "MONEY", "NORP", "ORDINAL", "ORG", "PERCENT", "PERSON", "PRODUCT",
    "QUANTITY", "TIME", "WORK_OF_ART",
)
# fmt: on

TOKEN_TASKS = (
    TaskSpec(
        name="squad",
        kind="span",
        description="Stanford Question Answering Dataset 1.1: which words of "
        "the context answer the question?",
        text_a="{question}",
        text_b="{context}",
        text_input="question: {question} context: {context}",
        metrics=("answer_f1", "answer_exact_match"),
        reader="squad",
        files={
            "train": ("squad/train-v1.1.json",),
            "validation": ("squad/dev-v1.1.json",),
        },
        tfds="squad/v1.1",
        rows={"train": 87599, "validation": 10570},
        source=True,
    ),
    TaskSpec(
        name="conll03",
        kind="tags",
        description="CoNLL-2003, English: persons, organizations, locations "
        "and other names in news.",
        text_a="{words}",
        text_input="conll03 {words}",
        labels=("PER", "ORG", "LOC", "MISC"),
        metrics=("span_f1",),
        reader="conll_columns",
        files={
            "train": ("conll03/eng.train|conll03/train.txt",),
            "validation": (
                "conll03/eng.testa|conll03/valid.txt|conll03/dev.txt",
            ),
            "test": ("conll03/eng.testb|conll03/test.txt",),
        },
        columns={"words": 0, "tags": 3},
        width=4,
        tfds="conll2003/conll2003",
        tfds_columns={"words": "tokens", "tags": "ner"},
        tfds_splits={"validation": "dev"},
        rows={"train": 14041, "validation": 3250},
        source=True,
    ),
    TaskSpec(
        name="conll04",
        kind="tags",
        description="CoNLL04 in SpERT's split: locations, organizations, "
        "people and other names in news.",
        text_a="{words}",
        text_input="conll04 {words}",
        labels=("Loc", "Org", "Peop", "Other"),
        metrics=("span_f1",),
        reader="spert",
        files={
            "train": ("conll04/conll04_train.json",),
            "validation": ("conll04/conll04_dev.json",),
            "test": ("conll04/conll04_test.json",),
        },
        rows={"train": 922, "validation": 231},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="conll05",
        kind="tags",
        description="CoNLL-2005: who does what to whom, when and where: the "
        "roles around one predicate (PropBank on the Wall Street Journal).",
        text_a="{words}",
        text_b="{predicate}",
        text_input="conll05 {words}",
        labels=_roles(
            "A",
            "012345A",
            "ADV CAU DIR DIS EXT LOC MNR MOD NEG PNC PRD PRP REC TM TMP",
        ),
        metrics=("role_f1",),
        reader="conll_props",
        files={
            "train": ("conll05/train.words", "conll05/train.props"),
            "validation": (
                "conll05/devel.words|conll05/dev.words",
                "conll05/devel.props|conll05/dev.props",
            ),
            "test": (
                "conll05/test.wsj.words|conll05/test_wsj.words",
                "conll05/test.wsj.props|conll05/test_wsj.props",
            ),
        },
        rows={"train": 90750, "validation": 3248},
        source=True,
    ),
    TaskSpec(
        name="conll12",
        kind="tags",
        description="CoNLL-2012 (OntoNotes 5): the roles around one predicate.",
        text_a="{words}",
        text_b="{predicate}",
        text_input="conll12 {words}",
        labels=_roles(
            "ARG",
            "012345A",
            "ADJ ADV CAU COM CXN DIR DIS DSP EXT GOL LOC LVB MNR MOD NEG PNC "
            "PRD PRP PRR PRX REC SLC TMP",
        ),
        metrics=("role_f1",),
        reader="conll12_roles",
        files=_conll12("conll12"),
        # Of the whole OntoNotes 5 in this format; the shared task's own
        # list of documents has about three quarters of them.
        rows={"train": 253070, "validation": 35297},
        source=True,
    ),
    TaskSpec(
        name="ontonotes",
        kind="tags",
        description="OntoNotes 5 in the CoNLL-2012 files: eighteen types of "
        "names, dates and numbers.",
        text_a="{words}",
        text_input="ontonotes {words}",
        labels=_ONTONOTES,
        metrics=("span_f1",),
        reader="conll12_names",
        files=_conll12("ontonotes", "conll12"),
        # Of the shared task's list of documents; the whole of OntoNotes 5
        # has 82122 and 12678.
        rows={"train": 59924, "validation": 8528},
        source=True,
    ),
)
