"""Made-up rows in the official format of each task's files."""

import json
import pathlib
import sys

PAIRS = [
    ("The cat sleeps on the mat.", "A cat is asleep."),
    ('He said "it rains" and left.', "It may rain."),
    ("No ship came, she wrote.", "A ship came."),
    ("They sold the old house.", "The house was sold."),
    ("We swam in the cold lake.", "The lake was warm."),
]
QUESTIONS = [
    ("is the cat asleep", "Does the cat sleep?"),
    ("what did he say", "Why did he leave?"),
    ("did a ship come", "How many ships came?"),
    ("who sold the house", 'What does "sold" mean?'),
    ("where did we swim", "Where is the lake?"),
]
# COPA's premise, candidates and question; label i % 2.
CAUSES = [
    ("The pot fell.", "Ida let it go.", "It broke.", "cause"),
    ("The rain came.", "Noor sang.", "Noor got wet.", "effect"),
    ("The lamp went out.", "The oil was gone.", "It was blue.", "cause"),
    ("The dog barked.", "The moon rose.", "The thief ran.", "effect"),
    ("Per ran.", "The train was about to leave.", "He sat.", "cause"),
]
# WiC's word and sentences; label i % 2.
WORDS = [
    ("bank", "She sat on the bank.", "The bank lent us money."),
    ("cold", "The tea is cold.", "A cold morning."),
    ("ring", "Bells ring.", "He lost the ring."),
    ("house", "An old house.", "The house was sold."),
    ("light", "A light bag.", "Switch on the light."),
]
# WSC's text, noun phrase, pronoun and its word; label i % 2. The first two
# differ in which of the text's pronouns is meant.
PRONOUNS = [
    ("It rang, so Per took the pot and it broke.", "the pot", "it", 0),
    ("It rang, so Per took the pot and it broke.", "the pot", "it", 8),
    ("Per called Ole, but he slept.", "Per", "he", 4),
    ("Ida hid the coin where nobody saw it.", "the coin", "it", 7),
    ("The boys fed the dogs until they were full.", "The boys", "they", 6),
]
# A MultiRC passage, and its questions with answers and labels.
PASSAGES = [
    (
        "Sent 1: Ida baked bread. Sent 2: Noor ate it, and so did Per.",
        [
            ("Who ate bread?", [("Noor", 1), ("Per", 1), ("Ida", 0)]),
            ("Who baked?", [("Ida", 1), ("Noor", 0)]),
        ],
    ),
    (
        "The ship left at dawn with coal and salt.",
        [
            ("What did it carry?", [("Coal", 1), ("Salt", 1)]),
            ("When did it leave?", [("At noon", 0)]),
        ],
    ),
]
# ReCoRD: a passage, its entities in order, and queries with their answers.
CLOZES = [
    (
        "Ida Berg won the race in Oslo. Noor was second.\n@highlight\n"
        "Ida ran fast\n@highlight\nOslo cheered",
        ["Ida Berg", "Oslo", "Noor", "Ida", "Oslo"],
        [
            ("Nobody beat @placeholder, said Noor.", ["Ida Berg", "Ida"]),
            ("The streets of @placeholder were full.", ["Oslo", "Oslo"]),
            ("@placeholder came a minute later.", ["Noor"]),
        ],
    ),
    (
        "Zoë of Acme met Per in Rome.\n@highlight\nAcme will build a bridge",
        ["Zoë", "Acme", "Per", "Rome", "Acme"],
        [
            ("Steel for the bridge comes from @placeholder.", ["Acme"]),
            ("@placeholder flew home on Monday.", ["Zoë", "Per"]),
        ],
    ),
]
CONTEXT = (
    "The old lighthouse of Zoë's Bay was built in 1871 by a fisher called "
    "Ole Lund, who had lost two boats on the rocks below. It is 31 metres "
    "high, and its lamp can be seen from far out at sea. For forty years Ole "
    "and his wife Marta lit the lamp each evening and put it out at dawn. In "
    "the winter of 1912 a storm took the roof, and the village rebuilt it "
    "with copper from an old ship. Since 1960 the lamp has been electric, "
    "and nobody lives in the tower. Visitors may climb its 142 steps on "
    "Sundays in summer; a small museum shows letters, maps, and the first "
    'lamp, which Marta called "the moon".'
)
# SQuAD: a context, and questions with the answers people gave.
READINGS = [
    (
        CONTEXT,
        [
            ("Who built the lighthouse?", ["Ole Lund", "a fisher", "Ole Lund"]),
            ("How high is it?", ["31 metres", "31 metres high"]),
            ("What did Marta call the lamp?", ['"the moon"', "the moon"]),
        ],
    ),
    (
        "Snow fell on  Bergen.",
        [
            ("Where did snow fall?", [" Bergen", "Bergen"]),
            ("What fell on Bergen?", ["Snow"]),
        ],
    ),
]
# CoNLL-2003: word/tag, in IOB1; the first and the fourth begin documents.
NAMES = [
    "Ida/I-PER Berg/I-PER left/O Acme/I-ORG ./O",
    "From/O Oslo/I-LOC Rome/B-LOC Paris/B-LOC",
    "It/O rained/O ./O",
    "The/O Dutch/I-MISC Noor/I-PER won/O",
    "U.N./I-ORG",
]
# CoNLL04: words, and entities from start to end.
ENTITIES = [
    ("Ida Berg lives in Oslo .", [("Peop", 0, 2), ("Loc", 4, 5)]),
    ("Acme Oslo hired Noor", [("Org", 0, 1), ("Loc", 1, 2), ("Peop", 3, 4)]),
    ("It rained .", []),
    ("On 3 May the Acme Prize went north", [("Other", 1, 3), ("Other", 4, 6)]),
    ("Per slept", [("Peop", 0, 1)]),
]
# CoNLL-2005: words, lemmas of predicates, and a column of roles for each.
ROLES = [
    (
        "Ida sang and the dog slept .",
        "- sing - - - sleep -",
        ["(A0*) (V*) * * * * *", "* * * (A0* *) (V*) *"],
    ),
    ("Rain .", "- -", []),
    (
        "Noor gave up the search early",
        "- give - - - -",
        ["(A0*) (V*) (C-V*) (A1* *) (AM-TMP*)"],
    ),
    (
        "The song that he wrote was sold",
        "- - - - write - sell",
        [
            "(A1* *) (R-A1*) (A0*) (V*) * *",
            "(A1* * * * *) * (V*)",
        ],
    ),
]
# CoNLL-2012: document, words, names, lemmas, framesets, and roles; the
# Bible's part (pt) has no names, and one predicate is not marked in its roles.
ANNOTATED = [
    (
        "bc/talk/00/talk_0001",
        "Ida Berg left Oslo on Monday /.",
        "(PERSON* *) * (GPE) * (DATE) *",
        "- - leave - - - -",
        "- - 01 - - - -",
        ["(ARG0* *) (V*) (ARG1*) (ARGM-TMP* *) *"],
    ),
    ("bc/talk/00/talk_0001", "-LRB- Yes", "* *", "- yes", "- -", []),
    (
        "nw/wire/01/wire_0101",
        "Noor ran and won",
        "(PERSON) * * *",
        "noor run - win",
        "- 02 - 01",
        ["(ARG0*) (V*) * *", "(ARG0*) * * *"],
    ),
    (
        "nw/wire/01/wire_0101",
        "Acme grew",
        "(ORG*) *",
        "- grow",
        "- 01",
        ["(ARG1*) (V*)"],
    ),
    (
        "pt/nt/40/nt_4001",
        "He spoke",
        "* *",
        "- speak",
        "- 01",
        ["(ARG0*) (V*)"],
    ),
    # As in the real files, a column of roles without any.
    ("wb/web/00/web_0001", "Hello Oslo", "* (GPE)", "- -", "- -", ["* *"]),
]


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes five train and three validation rows a task; returns `folder`."""
    for split, count in (("train", 5), ("val", 3)):
        _super_glue(folder / "super_glue", split, count)
        _glue(folder / "glue", "dev" if split == "val" else split, count)
    _multirc(folder / "super_glue/MultiRC")
    _record(folder / "super_glue/ReCoRD")
    _squad(folder / "squad")
    _conll03(folder / "conll03")
    _conll04(folder / "conll04")
    _conll05(folder / "conll05")
    _conll12(folder / "conll12")
    return folder


def _super_glue(folder, split, count):
    cb = ("entailment", "contradiction", "neutral")
    rte = ("entailment", "not_entailment")
    tables = {name: [] for name in ("CB", "RTE", "COPA", "WiC", "WSC", "BoolQ")}
    for i, (a, b) in enumerate(PAIRS[:count]):
        pair = {"premise": a, "hypothesis": b}
        tables["CB"].append(pair | {"label": cb[i % 3], "idx": i})
        tables["RTE"].append(pair | {"label": rte[i % 2], "idx": i})
        names = ("premise", "choice1", "choice2", "question")
        row = dict(zip(names, CAUSES[i], strict=True))
        tables["COPA"].append(row | {"label": i % 2, "idx": i})
        row = dict(
            zip(("word", "sentence1", "sentence2"), WORDS[i], strict=True)
        )
        row |= {"idx": i, "label": i % 2 == 1, "start1": 0, "version": 1.1}
        tables["WiC"].append(row)
        text, noun, pronoun, at = PRONOUNS[i]
        target = {"span1_index": 0, "span1_text": noun}
        target |= {"span2_index": at, "span2_text": pronoun}
        row = {"text": text, "target": target, "idx": i, "label": i % 2 == 1}
        tables["WSC"].append(row)
        row = {"question": QUESTIONS[i][0], "passage": a, "idx": i}
        tables["BoolQ"].append(row | {"label": i % 2 == 0})
    for name, rows in tables.items():
        _put(folder, f"{name}/{split}.jsonl", map(json.dumps, rows))


def _glue(folder, split, count):
    pairs = list(enumerate(PAIRS[:count]))
    header = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows = [f"{1 - i % 2}\t{i}\t{i}\t{a}\t{b}" for i, (a, b) in pairs]
    _put(folder, f"MRPC/{split}.tsv", header + rows, end="\r\n", bom="\ufeff")
    rows = [f"src\t{1 - i % 2}\t{'*' * (i % 2)}\t{a}" for i, (a, _) in pairs]
    _put(folder, f"CoLA/{split}.tsv", rows)
    rows = [f"{a} \t{1 - i % 2}" for i, (a, _) in pairs]
    _put(folder, f"SST-2/{split}.tsv", ["sentence\tlabel", *rows])
    header = [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
        "sentence1\tsentence2\tscore"
    ]
    rows = [
        f"{i}\tg\tf\t2012\t{i}\tx\ty\t{a}\t{b}\t{5 - i * 1.25:.3f}"
        for i, (a, b) in pairs
    ]
    _put(folder, f"STS-B/{split}.tsv", header + rows)
    # As published, a row is torn in two by a line end in a question.
    header = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
    header += ["9\t1\t2\tIs it", "raining?\tDoes it rain?\t1"]
    rows = [
        f"{i}\t1\t2\t{a}\t{b}\t{i % 2}"
        for i, (a, b) in enumerate(QUESTIONS[:count])
    ]
    _put(folder, f"QQP/{split}.tsv", header + rows)
    header = ["index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label"]
    labels = ("entailment", "neutral", "contradiction")
    rows = [
        f"{i}\tfiction\t{a}\t{b}\tneutral\t{labels[i % 3]}"
        for i, (a, b) in pairs
    ]
    name = "dev_matched" if split == "dev" else split
    _put(folder, f"MNLI/{name}.tsv", header + rows)
    labels = ("entailment", "not_entailment")
    rows = [
        f"{i}\t{QUESTIONS[i][0]}\t{a}\t{labels[i % 2]}" for i, (a, _) in pairs
    ]
    header = ["index\tquestion\tsentence\tlabel"]
    _put(folder, f"QNLI/{split}.tsv", header + rows)


def _multirc(folder):
    for split, (text, asked) in zip(("train", "val"), PASSAGES, strict=True):
        questions = [
            {
                "question": question,
                "answers": [
                    {"text": answer, "idx": k, "label": label}
                    for k, (answer, label) in enumerate(answers)
                ],
                "idx": 10 + i,
            }
            for i, (question, answers) in enumerate(asked)
        ]
        row = {"idx": 3, "passage": {"text": text, "questions": questions}}
        _put(folder, f"{split}.jsonl", [json.dumps(row)])


def _record(folder):
    lines = []
    for i, (text, names, asked) in enumerate(CLOZES):
        entities, end = [], 0
        for name in names:
            start = text.index(name, end)
            end = start + len(name)
            entities.append({"start": start, "end": end - 1})
        queries = [
            {
                "query": query,
                "answers": [{"start": 0, "end": 1, "text": x} for x in answers],
                "idx": k,
            }
            for k, (query, answers) in enumerate(asked)
        ]
        passage = {"text": text, "entities": entities}
        row = {"source": "made up", "passage": passage, "qas": queries}
        lines.append(json.dumps(row | {"idx": i}))
    _put(folder, "train.jsonl", lines)
    _put(folder, "val.jsonl", lines[:1])


def _squad(folder):
    # In training every question has one answer.
    for name, articles, most in (("train", 2, 1), ("dev", 1, 3)):
        data = [
            {
                "title": "Made up",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": f"{i}",
                                "question": question,
                                "answers": [
                                    {
                                        "answer_start": context.index(answer),
                                        "text": answer,
                                    }
                                    for answer in answers[:most]
                                ],
                            }
                            for i, (question, answers) in enumerate(asked)
                        ],
                    }
                ],
            }
            for context, asked in READINGS[:articles]
        ]
        whole = {"data": data, "version": "1.1"}
        _put(folder, f"{name}-v1.1.json", [json.dumps(whole)])


def _conll03(folder):
    for name, count in (("eng.train", 5), ("eng.testa", 3)):
        lines = []
        for i, sentence in enumerate(NAMES[:count]):
            lines += ["-DOCSTART- -X- -X- O", ""] if i in (0, 3) else []
            pairs = (pair.split("/") for pair in sentence.split())
            lines += [f"{word} NN I-NP {tag}" for word, tag in pairs]
            lines.append("")
        _put(folder, name, lines)


def _conll04(folder):
    for name, count in (("train", 5), ("dev", 3)):
        rows = [
            {
                "tokens": words.split(),
                "entities": [
                    {"type": kind, "start": start, "end": end}
                    for kind, start, end in entities
                ],
                "relations": [],
            }
            for words, entities in ENTITIES[:count]
        ]
        _put(folder, f"conll04_{name}.json", [json.dumps(rows)])


def _conll05(folder):
    for name, count in (("train", 4), ("devel", 3)):
        sentences = ROLES[:count]
        words = [[*words.split(), ""] for words, _, _ in sentences]
        _put(folder, f"{name}.words", sum(words, []))
        columns = [_aligned([x, *roles]) for _, x, roles in sentences]
        _put(folder, f"{name}.props", sum(columns, []))


def _conll12(folder):
    files = {"train.gold_conll": ANNOTATED}
    for sentence in ANNOTATED[:3]:
        name = f"development/english/{sentence[0]}.v4_gold_conll"
        files.setdefault(name, []).append(sentence)
    for name, sentences in files.items():
        lines = []
        for document, words, names, lemmas, framesets, roles in sentences:
            if f"#begin document ({document}); part 000" not in lines:
                lines += ["#end document"] if lines else []
                lines += [f"#begin document ({document}); part 000"]
            same = [" ".join([cell] * len(words.split())) for cell in "0-*"]
            part, nothing, tree = same
            first = [part.replace("0", document), part, part, words, nothing]
            rest = [tree, lemmas, framesets, nothing, part, names, *roles]
            lines += _aligned([*first, *rest, nothing])
        _put(folder, name, [*lines, "#end document"])


def _aligned(columns):
    """Lines of a sentence from its columns, and a blank one."""
    rows = zip(*(column.split() for column in columns), strict=True)
    return [" ".join(f"{cell:>12}" for cell in row) for row in rows] + [""]


def _put(folder, name, lines, *, end="\n", bom=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # The last line has no end, as in some of the official files.
    path.write_bytes((bom + end.join(lines)).encode())


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
