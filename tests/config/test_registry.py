"""Names of settings: what stands behind each, and what users add to them."""

import json

import jax
import pytest
from command_line import mistake

import panda_jax as pj
from panda_jax import cli
from panda_jax.config import registry, runs
from panda_jax.experiments.grid.grid import Grid, expand
from panda_jax.step import optimizers
from panda_jax.training import prompt_init
from panda_jax.transfer import source_fusion, transfer_metrics

# As docs/extending.md shows it.
MODULE = """
import jax.numpy as jnp
from panda_jax.transfer import transfer_metrics


def norms(a, b):
    def norm(x):
        return jnp.sqrt(jnp.square(jnp.reshape(x, (len(x), -1))).sum(-1))

    return 1 / (1 + jnp.abs(norm(a)[:, None] - norm(b)[None, :]))


transfer_metrics.METRICS["norms"] = transfer_metrics.Measure(
    "norms", "vectors", False, "likeness of the prompts' norms", norms
)
"""
SMALL = {
    "steps": 2,
    "train_examples": 16,
    "eval_examples": 16,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 32,
}


@pytest.fixture
def metrics():
    """Leaves the table as it was."""
    before = dict(transfer_metrics.METRICS)
    yield transfer_metrics.METRICS
    transfer_metrics.METRICS.clear()
    transfer_metrics.METRICS.update(before)


def test_every_name_has_a_meaning():
    assert tuple(source_fusion.TRANSFORMS) == registry.TRANSFORMS
    assert tuple(transfer_metrics.METRICS) == tuple(registry.METRICS.names)
    for optimizer in registry.OPTIMIZERS:
        assert optimizers.transform(optimizer).init
    for schedule in registry.SCHEDULES:
        assert optimizers.schedule_numbers(schedule, total=2, epoch_steps=1)


def test_every_initialiser_is_another(tiny):
    found = []
    for name in registry.INITIALISERS:
        run = runs.make_run(
            task="cb",
            prompt_kind="shallow",
            prompt_length=4,
            prompt_init=name,
            init_text="a text" if name == "text" else None,
        )
        found.append(prompt_init.fresh_vectors(run, tiny, jax.random.key(0)))
    assert {vectors.shape for vectors in found} == {(4, 128)}
    assert len({float(vectors.sum()) for vectors in found}) == len(found)


def test_a_registry_is_filled_with_its_own_names():
    table = registry.Registry("thing", "a", "b")
    assert "a" in table.names
    assert len(table.names) == 2
    with pytest.raises(AssertionError, match=r"names other things: \{'b'\}"):
        table.fill({"a": 1})
    table.fill({"a": 1, "b": 2})
    table["c"] = 3
    assert list(table.names) == ["a", "b", "c"]
    assert "c" in table.names
    assert "d" not in table.names


def test_a_metric_of_the_user_s_weighs_panda(
    tiny, metrics, tmp_path, monkeypatch, capsys
):
    """Registered as docs/extending.md shows, it is one like any other."""
    (tmp_path / "my_norms.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "bank" / "source"
    pj.train(tiny, task="toy_topic", model_dir=source, quiet=True, **SMALL)
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    asked = [
        "train",
        "--task=toy_review",
        "--method=panda",
        "--backbone=random:bert-tiny",
        "--transfer_metric=norms",
        *flags,
        "--model_dir=run",
    ]
    said = mistake(capsys, *asked, f"--source={source}")
    assert "Unknown transfer_metric 'norms'. Known: d_avg" in said
    asked = [*asked, "--import=my_norms", "--quiet", "--json"]
    assert cli.main([*asked, f"--source={source}"]) == 0
    weighed = json.loads((tmp_path / "run" / "run.json").read_text())
    assert weighed["settings"]["transfer_metric"] == "norms"
    chosen = pj.train(
        tiny,
        task="toy_review",
        method="pot",
        sources=tmp_path / "bank",
        transfer_metric="norms",
        quiet=True,
        **SMALL,
    )
    assert chosen.result["run_id"].startswith("toy_review-pot-s0-")
    assert runs.make_run(task="cb", transfer_metric="norms")
    (*_, run) = expand(
        Grid(
            sources="toy_topic",
            targets="toy_review",
            methods="panda",
            settings={"transfer_metric": "norms"},
        )
    ).runs
    assert run.run.transfer_metric == "norms"
    assert cli.main(["help", "train"]) == 0
    assert "first_steps, norms." in " ".join(capsys.readouterr().out.split())
