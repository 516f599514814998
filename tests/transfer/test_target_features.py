"""Labels that metrics read, of every task in both views."""

import made_up_data
import pytest
from panda_jax.tasks import specs

from panda_jax.data import loading
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.transfer import target_features

TASKS = [
    name
    for name in specs.names()
    if name not in specs.MIXTURES and not specs.get(name).offline
]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("labels"))


def check(name, rows, *, has_any):
    spec, found = specs.get(name), target_features.labelled(name, rows)
    assert (found is not None) == has_any
    if found is not None and found.classes is not None:
        assert 0 <= found.targets.min() < found.targets.max() < found.classes
    if found is not None and spec.group:
        assert found.groups is not None


@pytest.mark.parametrize("name", TASKS)
def test_of_an_encoder_s_rows(name, made_up, tiny):
    rows = loading.load_examples(
        name, "train", tokenizer=tiny.tokenizer, data_dir=made_up
    )
    check(name, rows, has_any=specs.get(name).kind != "span")


@pytest.mark.parametrize("name", TASKS)
def test_of_text_to_text_rows(name, made_up):
    """Answers that a question groups too, which are more than a class."""
    rows = loading.load_text_examples(
        name, "train", tokenizer=TextTokenizer.of_bytes(), data_dir=made_up
    )
    spec = specs.get(name)
    none = spec.kind in ("span", "tags") or spec.listed_choices
    check(name, rows, has_any=not none)
