"""What a model is shown must tell the right answer, in both views."""

import pathlib

import ceilings
import made_up_data
import pytest
from panda_jax.tasks import sources, specs

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data"
TASKS = [
    name
    for name in specs.names()
    if name not in specs.MIXTURES
    and not specs.get(name).offline
    and specs.get(name).kind in ("classification", "choice")
]
# The published rows themselves say both of one sentence.
KNOWN = {"cola": 11, "sst2": 6, "multirc": 1}


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made_up_data.write(tmp_path_factory.mktemp("ceilings"))


@pytest.mark.parametrize("view", ceilings.VIEWS)
@pytest.mark.parametrize("name", TASKS)
def test_no_two_answers_to_what_is_shown_alike(name, view, made_up):
    spec = specs.get(name)
    for split in ("train", "validation"):
        rows = sources.find(spec, data_dir=made_up).rows(split)
        shown = [ceilings.VIEWS[view](spec, row) for row in rows]
        assert ceilings.contradictions(shown) == []
        assert ceilings.best(shown)[2] == 1.0


@pytest.mark.parametrize("view", ceilings.VIEWS)
@pytest.mark.parametrize("name", TASKS)
def test_real_rows_can_be_answered(name, view):
    spec = specs.get(name)
    if not all((REAL / name).is_file() for name in spec.files["train"]):
        pytest.skip("its files are not here")
    source = sources.find(spec, data_dir=REAL)
    for split in ("train", "validation"):
        shown = [ceilings.VIEWS[view](spec, row) for row in source.rows(split)]
        assert ceilings.best(shown)[2] >= 0.99
        found = ceilings.contradictions(shown)
        assert len(found) <= KNOWN.get(name, 0), found[:3]


def test_one_question_for_two_answers_is_found():
    shown = [("q", 0), ("q", 1), ("q", 1), ("r", 0)]
    assert ceilings.best(shown) == (4, 2, 0.75, 0.5)
    assert ceilings.contradictions(shown) == ["q"]
