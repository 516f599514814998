"""The tasks of GLUE and SuperGLUE: one readable specification each."""

from panda_jax.tasks.spec import TaskSpec

_TRUTH = {"false": "False", "true": "True", "0": "False", "1": "True"}


def _glue(folder: str, validation: str = "dev") -> dict[str, tuple[str]]:
    return {
        "train": (f"glue/{folder}/train.tsv",),
        "validation": (f"glue/{folder}/{validation}.tsv",),
    }


def _super_glue(folder: str) -> dict[str, tuple[str]]:
    return {
        "train": (f"super_glue/{folder}/train.jsonl",),
        "validation": (f"super_glue/{folder}/val.jsonl",),
    }


SUPER_GLUE = (
    TaskSpec(
        name="cb",
        description="CommitmentBank (SuperGLUE): does the text commit its "
        "author to the hypothesis?",
        text_a="{premise}",
        text_b="{hypothesis}",
        labels=("entailment", "contradiction", "neutral"),
        metrics=("accuracy", "f1"),
        reader="jsonl",
        files=_super_glue("CB"),
        tfds="super_glue/cb",
        rows={"train": 250, "validation": 56},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="copa",
        kind="choice",
        description="Choice of Plausible Alternatives (SuperGLUE): which of "
        "two sentences is the cause or the effect of the premise?",
        text_a="{premise} {question}",
        text_b="{choice}",
        spoken={"question": {"cause": "because", "effect": "so"}},
        choices=("choice1", "choice2"),
        labels=("choice1", "choice2"),
        reader="jsonl",
        files=_super_glue("COPA"),
        label_values={"0": "choice1", "1": "choice2"},
        tfds="super_glue/copa",
        rows={"train": 400, "validation": 100},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="rte",
        description="Recognizing Textual Entailment (SuperGLUE): does the "
        "hypothesis follow from the premise?",
        text_a="{premise}",
        text_b="{hypothesis}",
        labels=("entailment", "not_entailment"),
        reader="jsonl",
        files=_super_glue("RTE"),
        tfds="super_glue/rte",
        rows={"train": 2490, "validation": 277},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="wic",
        description="Words in Context (SuperGLUE): does the word have the "
        "same meaning in both sentences?",
        text_a="{word}: {sentence1}",
        text_b="{word}: {sentence2}",
        labels=("False", "True"),
        reader="jsonl",
        files=_super_glue("WiC"),
        label_values=_TRUTH,
        tfds="super_glue/wic",
        rows={"train": 5428, "validation": 638},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="wsc",
        description="Winograd Schema Challenge (SuperGLUE): does the pronoun "
        "(span 2) stand for the noun phrase (span 1)? Asterisks say which of "
        "the text's pronouns.",
        text_a="{span2_text}: {text}",
        text_b="{span1_text}",
        pointed=("text", "span2_text", "span2_index"),
        text_input="wsc span1: {span1_text} span2: {span2_text} text: {text}",
        labels=("False", "True"),
        reader="jsonl",
        files=_super_glue("WSC"),
        columns={
            "span1_text": "target.span1_text",
            "span2_text": "target.span2_text",
            "span2_index": "target.span2_index",
        },
        label_values=_TRUTH,
        tfds="super_glue/wsc.fixed",
        rows={"train": 554, "validation": 104},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="boolq",
        description="Boolean Questions (SuperGLUE): is the answer to the "
        "question yes, by the passage?",
        text_a="{question}",
        text_b="{passage}",
        labels=("False", "True"),
        reader="jsonl",
        files=_super_glue("BoolQ"),
        label_values=_TRUTH,
        tfds="super_glue/boolq",
        rows={"train": 9427, "validation": 3270},
        source=True,
    ),
    TaskSpec(
        name="multirc",
        description="Multi-Sentence Reading Comprehension (SuperGLUE): is "
        "the answer right, by the paragraph? A question may have several "
        "right answers.",
        text_a="{paragraph}",
        text_b="{question} {answer}",
        text_input="multirc question: {question} answer: {answer} paragraph: "
        "{paragraph}",
        labels=("False", "True"),
        metrics=("f1", "exact_match", "accuracy"),
        reader="multirc",
        files=_super_glue("MultiRC"),
        lenient=True,
        label_values=_TRUTH,
        group="question_id",
        tfds="super_glue/multirc",
        rows={"train": 27243, "validation": 4848},
        source=True,
    ),
    TaskSpec(
        name="record",
        kind="choice",
        description="Reading Comprehension with Commonsense Reasoning "
        "(SuperGLUE): which entity of the passage fills the gap of the query?",
        text_a="{passage}",
        text_b="{query}",
        text_input="record query: {query} entities: {entities} passage: "
        "{passage}",
        choices=("entities",),
        placeholder="@placeholder",
        # A passage names up to some dozens; eight keep a batch in bounds.
        train_choices=8,
        metrics=("answer_f1", "answer_exact_match"),
        reader="record",
        files=_super_glue("ReCoRD"),
        tfds="super_glue/record",
        rows={"train": 100730, "validation": 10000},
        source=True,
    ),
)

GLUE = (
    TaskSpec(
        name="cola",
        description="Corpus of Linguistic Acceptability (GLUE): is the "
        "sentence grammatical English?",
        text_a="{sentence}",
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        reader="tsv_plain",
        files=_glue("CoLA"),
        columns={"label": 1, "sentence": 3},
        width=4,
        label_values={"0": "unacceptable", "1": "acceptable"},
        tfds="glue/cola",
        rows={"train": 8551, "validation": 1043},
        target=True,
        source=True,
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
        files=_glue("MRPC"),
        columns={
            "sentence1": "#1 String",
            "sentence2": "#2 String",
            "label": "Quality",
        },
        label_values={"0": "not_equivalent", "1": "equivalent"},
        tfds="glue/mrpc",
        rows={"train": 3668, "validation": 408},
        target=True,
        source=True,
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
        files=_glue("STS-B"),
        columns={"label": "score"},
        score_range=(0.0, 5.0),
        tfds="glue/stsb",
        rows={"train": 5749, "validation": 1500},
        target=True,
        source=True,
    ),
    TaskSpec(
        name="sst2",
        description="Stanford Sentiment Treebank (GLUE): is the phrase of a "
        "film review positive?",
        text_a="{sentence}",
        labels=("negative", "positive"),
        reader="tsv",
        files=_glue("SST-2"),
        label_values={"0": "negative", "1": "positive"},
        tfds="glue/sst2",
        rows={"train": 67349, "validation": 872},
        source=True,
    ),
    TaskSpec(
        name="qqp",
        description="Quora Question Pairs (GLUE): do two questions ask the "
        "same?",
        text_a="{question1}",
        text_b="{question2}",
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        reader="tsv",
        files=_glue("QQP"),
        columns={"label": "is_duplicate"},
        lenient=True,
        label_values={"0": "not_duplicate", "1": "duplicate"},
        tfds="glue/qqp",
        rows={"train": 363846, "validation": 40430},
        source=True,
    ),
    TaskSpec(
        name="mnli",
        description="Multi-Genre Natural Language Inference (GLUE), "
        "validated on the matched genres: does the hypothesis follow from "
        "the premise, contradict it, or neither?",
        text_a="{premise}",
        text_b="{hypothesis}",
        labels=("entailment", "neutral", "contradiction"),
        reader="tsv",
        lenient=True,
        files=_glue("MNLI", "dev_matched"),
        columns={
            "premise": "sentence1",
            "hypothesis": "sentence2",
            "label": "gold_label",
        },
        tfds="glue/mnli",
        tfds_splits={"validation": "validation_matched"},
        rows={"train": 392702, "validation": 9815},
        source=True,
    ),
    TaskSpec(
        name="qnli",
        description="Question NLI (GLUE): does the sentence hold the answer "
        "to the question?",
        text_a="{question}",
        text_b="{sentence}",
        labels=("entailment", "not_entailment"),
        reader="tsv",
        lenient=True,
        files=_glue("QNLI"),
        tfds="glue/qnli",
        rows={"train": 104743, "validation": 5463},
        source=True,
    ),
)
