import collections
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from panda_jax.tasks import offline, specs

from panda_jax.data.tokenizer import Tokenizer

NAMES = sorted(offline.GENERATORS)

# Rows are the same on every machine, in every process and Python version.  If
# you changed a grammar or the lexicon on purpose, put the new prefixes here
# and say in the changelog that scores on these tasks are not comparable.
GOLDEN = {
    "toy_acceptability": "8ceb4ff7875d",
    "toy_contradiction": "685414373fdc",
    "toy_entailment": "3b8960ad85f0",
    "toy_paraphrase": "77e7a0df9b73",
    "toy_question": "207a33a9c8f9",
    "toy_review": "370df20e3e0f",
    "toy_sentiment": "bde790685d65",
    "toy_tense": "2584cb611254",
    "toy_topic": "ec60fe80498a",
}


def _texts(row):
    return tuple(v for k, v in row.items() if k != "label")


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_golden_ones(name):
    assert offline.fingerprint(name, "train")[:12] == GOLDEN[name]


def test_rows_do_not_depend_on_the_process():
    code = (
        "from panda_jax.tasks import offline\n"
        f"print([offline.fingerprint(n, 'validation') for n in {NAMES}])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [offline.fingerprint(name, "validation") for name in NAMES]
    assert seen == {f"{here}\n"}


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_balanced_and_disjoint(name):
    seen: dict[str, set] = {}
    classes = specs.get(name).outputs
    for split, size in offline.SIZES.items():
        rows = offline.rows(name, split)
        counts = collections.Counter(row["label"] for row in rows)
        assert len(rows) == size == len({_texts(row) for row in rows})
        assert sorted(counts) == list(range(classes))
        assert max(counts.values()) - min(counts.values()) <= 1
        # Labels must not come in an order that an epoch could lean on.
        first = collections.Counter(row["label"] for row in rows[: size // 4])
        assert min(first.values()) > 0.6 * size / 4 / classes
        seen[split] = {
            _texts(row)
            for seed in (0, 1)
            for row in offline.rows(name, split, seed=seed)
        }
    assert not seen["train"] & seen["validation"]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_has_one_label_only(name):
    labels: dict = {}
    for seed in range(3):
        for row in offline.rows(name, "train", seed=seed):
            assert labels.setdefault(_texts(row), row["label"]) == row["label"]
    assert len(labels) > 2500, "another seed must give other rows"


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_short(name):
    tokenizer = Tokenizer.builtin()
    rows = offline.rows(name, "train") + offline.rows(name, "validation")
    for row in rows:
        ids = tokenizer.encode(_texts(row))
        assert sum(map(len, ids)) + len(ids) + 1 <= 26, row


# What a linear model of words (each text's apart) may reach on 2000 rows.
CEILINGS = {
    "toy_sentiment": 0.85,
    "toy_review": 0.65,
    "toy_acceptability": 0.82,
    "toy_tense": 0.75,
    "toy_entailment": 0.78,
    "toy_paraphrase": 0.68,
    "toy_contradiction": 0.65,
}


@pytest.mark.parametrize("name", sorted(CEILINGS))
def test_a_bag_of_words_is_not_enough(name):
    from sklearn.linear_model import LogisticRegression

    tokenizer = Tokenizer.builtin()

    def bags(split):
        rows = offline.rows(name, split)
        found = np.zeros((len(rows), 2, tokenizer.vocab_size), np.float32)
        for i, row in enumerate(rows):
            for j, ids in enumerate(tokenizer.encode(_texts(row))):
                found[i, j, ids] = 1
        return found.reshape(len(rows), -1), [row["label"] for row in rows]

    model = LogisticRegression(max_iter=60).fit(*bags("train"))
    assert model.score(*bags("validation")) < CEILINGS[name]


def test_facts_entail_by_kind_and_by_detail():
    from panda_jax.tasks.offline_pairs import _entails, _Fact

    fact = _Fact("nurse", "buy", "car", adjective="red", place="in Rome")

    def change(**fields):
        return dataclasses.replace(fact, **fields)

    for general in (
        fact,
        change(patient="vehicle"),
        change(agent="person", adjective=""),
        change(place=""),
    ):
        assert _entails(fact, general)
        assert general == fact or not _entails(general, fact)
    for other in (
        change(patient="truck"),
        change(patient="fruit"),
        change(agent="baker", place=""),
        change(verb="sell"),
        change(adjective="big"),
        fact.swapped(),
    ):
        assert not _entails(fact, other)


def test_facts_are_rendered_in_both_voices():
    from panda_jax.tasks.offline_pairs import _Fact

    fact = _Fact("nurse", "choose", "apple", adjective="old", place="in Rome")
    assert fact.text(the=False) == "A nurse chose an old apple in Rome."
    assert (
        fact.text(passive=True, negated=True)
        == "The old apple was not chosen by the nurse in Rome."
    )
