"""Made-up rows in the official format of each task's files."""

import json
import pathlib

PAIRS = [
    ("The cat sleeps on the mat.", "A cat is asleep."),
    ('He said "it rains" and left.', "It may rain."),
    ("No ship came, she wrote.", "A ship came."),
    ("They sold the old house.", "The house was sold."),
    ("We swam in the cold lake.", "The lake was warm."),
]


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes five train and three validation rows a task; returns `folder`."""
    for split, count in (("train", 5), ("val", 3)):
        pairs = PAIRS[:count]
        cb = ("entailment", "contradiction", "neutral")
        rte = ("entailment", "not_entailment")
        for name, labels in (("CB", cb), ("RTE", rte)):
            lines = [
                json.dumps(
                    {
                        "premise": a,
                        "hypothesis": b,
                        "label": labels[i % len(labels)],
                        "idx": i,
                    }
                )
                for i, (a, b) in enumerate(pairs)
            ]
            _put(folder, f"super_glue/{name}/{split}.jsonl", lines)
        _glue(folder / "glue", "dev" if split == "val" else split, pairs)
    return folder


def _glue(folder, split, pairs):
    header = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows = [f"{i % 2}\t{i}\t{i}\t{a}\t{b}" for i, (a, b) in enumerate(pairs)]
    _put(folder, f"MRPC/{split}.tsv", header + rows, end="\r\n", bom="\ufeff")
    rows = [
        f"src\t{i % 2}\t{'*' * (1 - i % 2)}\t{a}"
        for i, (a, _) in enumerate(pairs)
    ]
    _put(folder, f"CoLA/{split}.tsv", rows)
    rows = [f"{a} \t{i % 2}" for i, (a, _) in enumerate(pairs)]
    _put(folder, f"SST-2/{split}.tsv", ["sentence\tlabel", *rows])
    header = [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
        "sentence1\tsentence2\tscore"
    ]
    rows = [
        f"{i}\tg\tf\t2012\t{i}\tx\ty\t{a}\t{b}\t{i * 1.25:.3f}"
        for i, (a, b) in enumerate(pairs)
    ]
    _put(folder, f"STS-B/{split}.tsv", header + rows)


def _put(folder, name, lines, *, end="\n", bom=""):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # The last line has no end, as in some of the official files.
    path.write_bytes((bom + end.join(lines)).encode())
