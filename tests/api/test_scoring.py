"""Banks against targets: what is read, once, of which rows, and refused."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from panda_jax.tasks import specs

import panda_jax as pj
from panda_jax import cli
from panda_jax.api import scoring
from panda_jax.cli import arguments
from panda_jax.config import registry, runs
from panda_jax.errors import UserError
from panda_jax.parallel.sharding import Partitioner
from panda_jax.prompts import Prompt
from panda_jax.step import steps
from panda_jax.store.prompt_folders import PromptInfo, StoredPrompt, save_prompt
from panda_jax.training import evaluation, prompt_init
from panda_jax.transfer import (
    combine,
    first_steps,
    probing,
    scorer,
    similarity,
    target_features,
    transfer_metrics,
    transferability,
)

TASKS = ("toy_review", "toy_sentiment", "toy_topic")  # as banks sort them


def prompt(backbone, task, seed, *, length=4, scale=1.0):
    """A random deep prompt that says it was tuned on `task`."""
    c = backbone.config
    shape = (c.layers, 2, length, c.heads, c.head_dim)
    vectors = np.random.default_rng(seed).normal(size=shape) * scale
    info = PromptInfo(
        task=task,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        kind="deep",
        method="prompt",
        max_length=32,
    )
    return StoredPrompt(Prompt(vectors.astype(np.float32), {}), info)


@pytest.fixture(scope="module")
def bank(tiny):
    return {task: prompt(tiny, task, i) for i, task in enumerate(TASKS)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PANDA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def train_rows(backbone, task, count=100):
    return evaluation.load_view(
        task, "train", backbone=backbone, max_length=32, limit=count
    )


def probed(backbone, stored, examples):
    return steps.probe(
        backbone.params,
        examples.tokens,
        examples.segments,
        stored.prompt.vectors,
        config=backbone.config,
    )


def test_task_vectors_are_means_over_the_task_s_own_rows(tiny, bank, cache):
    """One prompt at a time, whole batches: what the stream must equal."""
    for readout in ("mean", "first", "pooled", "layer_1", "layer_2"):
        vectors = []
        for task, stored in bank.items():
            found = probed(tiny, stored, train_rows(tiny, task))
            layer = readout.partition("_")[2]
            rows = found["layers"][int(layer) - 1] if layer else found[readout]
            vectors.append(rows.mean(0))
        expected = similarity.cosine(jnp.stack(vectors), jnp.stack(vectors))
        scores = pj.score(
            sources=bank,
            targets=bank,
            metrics=("panda",),
            backbone=tiny,
            readout=readout,
        )
        np.testing.assert_allclose(
            scores.values["panda"], expected, atol=2e-5, err_msg=readout
        )


@pytest.fixture
def padded(monkeypatch):
    """Lanes of padded batches, as on accelerators."""
    monkeypatch.setenv("PANDA_CPU_TRICKS", "0")


@pytest.mark.parametrize("switch", ["1", "0"])
def test_more_rows_than_a_batch_are_the_same_mean(
    tiny, bank, cache, monkeypatch, switch
):
    monkeypatch.setenv("PANDA_CPU_TRICKS", switch)
    stored = bank["toy_review"]
    examples = train_rows(tiny, "toy_review", 203)
    rows = probing.rows_of_examples(examples)
    batches = probing.batches_of(rows)
    assert [batch.tokens.shape[0] for batch in batches] == [104, 104]
    assert batches[1].tokens.shape[1] <= batches[0].tokens.shape[1]
    real = np.concatenate([batch.number for batch in batches])
    assert sorted(real.tolist()) == [*range(203), *[203] * 5]
    vectors = stored.prompt.vectors
    ask = probing.Ask(lambda: vectors, vectors.shape, "x", rows)
    (found,) = probing.Prober(tiny).read([ask], "mean")
    expected = probed(tiny, stored, examples)["mean"].mean(0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    ((label, each),) = probing.Prober(tiny).features([("it", ask)], "mean")
    assert label == "it"
    np.testing.assert_allclose(
        each, probed(tiny, stored, examples)["mean"], atol=1e-5
    )


def test_a_thousand_prompts_are_one_compilation_and_then_files(
    tiny, cache, monkeypatch, padded
):
    many = {f"p{i:02d}": prompt(tiny, "toy_review", i) for i in range(12)}

    def ask():
        return pj.score(
            sources=many, targets=many, metrics=("panda", "on"), backbone=tiny
        )

    probing.probe_lanes.clear_cache()
    first = ask()
    # One for the outputs, one for the neurons, whatever the bank's size.
    assert probing.probe_lanes._cache_size() == 2
    assert len(list((cache / "vectors").rglob("*.npy"))) == 24
    monkeypatch.setattr(
        probing, "probe_lanes", lambda *a, **k: pytest.fail("was cached")
    )
    again = ask()
    for metric, values in first.values.items():
        np.testing.assert_array_equal(again.values[metric], values)
    # Another prompt, readout or row is not what was kept.
    with pytest.raises(pytest.fail.Exception):
        pj.score(
            sources={"new": prompt(tiny, "toy_review", 99)},
            targets=many,
            metrics=("panda",),
            backbone=tiny,
        )
    with pytest.raises(pytest.fail.Exception):
        pj.score(
            sources=many,
            targets=many,
            metrics=("panda",),
            backbone=tiny,
            examples=50,
        )


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize(
    "read", ["pooled", "first", "mean", "layers", "neurons", "hidden"]
)
def test_packed_rows_tell_what_padded_ones_do(tiny, cache, kind, read):
    c = tiny.config
    draw = np.random.default_rng(0)
    lengths = draw.integers(3, 30, 40)
    tokens = draw.integers(5, 200, (40, 32)).astype(np.int32)
    tokens *= np.arange(32) < lengths[:, None]
    segments = ((np.arange(32) > 4) & (tokens != 0)).astype(np.int32)
    shape = (4, c.width)
    if kind == "deep":
        shape = (c.layers, 2, 4, c.heads, c.head_dim)
    vectors = draw.normal(size=shape).astype(np.float32)
    whole = steps.probe(tiny.params, tokens, segments, vectors, config=c)
    wanted = np.asarray(whole[read])
    if read in ("layers", "neurons"):
        wanted = wanted.swapaxes(0, 1)
    rows = probing.rows_of(tokens, segments)
    ask = probing.Ask(lambda: vectors, vectors.shape, "x", rows)
    prober = probing.Prober(tiny, cached=False)
    ((_, found),) = prober.features([("it", ask)], read)
    if read == "hidden":
        wanted = np.where((tokens != 0)[..., None], wanted, 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    ((_, parts),) = prober._packings.values()
    assert max(len(part.slots) - part.rows for part, _ in parts) > 0
    if read != "hidden":
        (mean,) = prober.read([ask], read)
        np.testing.assert_allclose(mean, wanted.mean(0), atol=1e-5)


def test_lanes_at_once_change_nothing(tiny, cache, monkeypatch, padded):
    """Short rows share a dispatch; a bank is no multiple of what fits."""
    many = {f"p{i:02d}": prompt(tiny, "toy_review", i) for i in range(21)}
    taken = []
    real = probing.probe_lanes

    def spy(vectors, *rest, **static):
        taken.append(len(vectors))
        return real(vectors, *rest, **static)

    monkeypatch.setattr(probing, "probe_lanes", spy)
    options = {"metrics": ("on",), "backbone": tiny, "cached": False}
    options["on_binarised"] = False
    together = pj.score(sources=many, targets=many, **options)
    assert taken == [probing._LANES] * 2
    monkeypatch.setattr(probing, "_POSITIONS", 1)
    alone = pj.score(sources=many, targets=many, **options)
    assert taken[2:] == [1] * 21
    np.testing.assert_allclose(
        together.values["on"], alone.values["on"], atol=1e-5
    )


def test_a_damaged_cache_is_said_and_computed_anew(tiny, bank, cache):
    options = {"metrics": ("panda",), "backbone": tiny}
    first = pj.score(sources=bank, targets=bank, **options)
    files = sorted((cache / "vectors").rglob("*.npy"))
    files[0].write_bytes(files[0].read_bytes()[:40])
    files[1].write_bytes(b"no array")
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = pj.score(sources=bank, targets=bank, **options)
    np.testing.assert_array_equal(again.values["panda"], first.values["panda"])
    off = pj.score(sources=bank, targets=bank, cached=False, **options)
    np.testing.assert_array_equal(off.values["panda"], first.values["panda"])


@pytest.mark.parametrize(("kept", "reads"), [(2**28, 1), (0, 2)])
def test_prompts_beyond_a_limit_are_let_go_again(
    tiny, tmp_path, cache, monkeypatch, kept, reads
):
    """A large bank on disk is never all in memory, a small one read once."""
    monkeypatch.setattr(scoring, "_KEPT", kept)
    read, real = [], scoring.PromptBank.read
    monkeypatch.setattr(
        scoring.PromptBank,
        "read",
        lambda bank, name: read.append(name) or real(bank, name),
    )
    for i in range(6):
        stored = prompt(tiny, "toy_review", i)
        save_prompt(tmp_path / "bank" / f"p{i}", stored.prompt, stored.info)
    bank = pj.PromptBank(tmp_path / "bank")
    pj.score(sources=bank, targets=bank, metrics=("panda",), backbone=tiny)
    assert sorted(read) == sorted(reads * bank.names)
    assert bank._loaded == {}


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 1, 4)])
def test_over_a_mesh_the_scores_are_the_same(tiny, bank, cache, shape):
    def scores(partitioner):
        return pj.score(
            sources=bank,
            targets=bank,
            metrics=("panda", "on", "logme"),
            backbone=tiny,
            cached=False,
            examples=40,
            partitioner=partitioner,
        ).values

    alone, many = scores(None), scores(Partitioner(mesh_shape=shape))
    for metric, values in alone.items():
        np.testing.assert_allclose(many[metric], values, atol=1e-4)


def test_neurons_by_layer_input_and_amount(tiny, bank, cache):
    def on(**options):
        return pj.score(
            sources=bank,
            targets=bank,
            metrics=("on",),
            backbone=tiny,
            **options,
        ).values["on"]

    empty = np.array([tiny.tokenizer.empty_ids])
    neurons = [
        steps.probe(
            tiny.params,
            empty,
            0 * empty,
            stored.prompt.vectors,
            config=tiny.config,
        )["neurons"][:, 0]
        for stored in bank.values()
    ]
    stacked = jnp.stack(neurons)
    for options, read in (
        ({}, stacked),
        ({"on_layers": "1:"}, stacked[:, 1:]),
        ({"on_layers": "0:1"}, stacked[:, :1]),
    ):
        expected = similarity.neuron_overlap(read, read)
        np.testing.assert_allclose(on(**options), expected, atol=1e-5)
    raw = similarity.neuron_overlap(stacked, stacked, binarised=False)
    np.testing.assert_allclose(on(on_binarised=False), raw, atol=1e-5)
    assert not np.allclose(on(on_input="examples"), on())


def test_the_labels_metrics_are_of_features_under_each_source(
    tiny, bank, cache
):
    scores = pj.score(
        sources=bank,
        targets=["toy_topic", "toy_review"],
        metrics=("logme", "h_score", "probe"),
        backbone=tiny,
        max_length=32,
        examples=60,
    )
    for n, task in enumerate(scores.targets):
        examples = train_rows(tiny, task, 60)
        features = np.stack(
            [probed(tiny, p, examples)["mean"] for p in bank.values()]
        )
        for name, function in (
            ("logme", transferability.log_me),
            ("h_score", transferability.h_score),
            ("probe", transferability.linear_probe),
        ):
            expected = function(
                features,
                examples.labels,
                num_classes=len(specs.get(task).labels),
            )
            found = scores.values[name][:, n]
            np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_source_that_is_the_first_step_is_aligned(tiny, cache):
    """start - e * gradient scores 1, start + e * gradient -1."""
    run = runs.make_run(
        task="toy_review", backbone=tiny.id, prompt_length=4
    ).for_family(text_to_text=False)
    start = prompt_init.initial_prompt(run, tiny, None)
    examples = train_rows(tiny, "toy_review", 40)
    data = target_features.labelled("toy_review", examples)
    gradient = target_features.readout_gradient(
        start.vectors,
        tiny.params,
        examples.tokens,
        examples.segments,
        target_features.columns_of(data),
        None,
        config=tiny.config,
        read="mean",
    )
    assert float(jnp.abs(gradient).max()) > 0
    like = prompt(tiny, "toy_topic", 0)
    step = gradient / jnp.linalg.norm(gradient)
    sources = {
        name: StoredPrompt(
            Prompt(np.asarray(start.vectors + factor * step), {}), like.info
        )
        for name, factor in (("away", 1.0), ("towards", -1.0))
    }
    scores = pj.score(
        sources=sources,
        targets=["toy_review"],
        metrics=("gradient",),
        backbone=tiny,
        max_length=32,
        examples=40,
    )
    np.testing.assert_allclose(
        scores.values["gradient"][:, 0], [-1, 1], atol=1e-3
    )


def test_the_readout_s_gradient_is_that_of_its_loss(tiny):
    """Against differences of the loss with the readout fitted anew."""
    examples = train_rows(tiny, "toy_review", 40)
    data = target_features.labelled("toy_review", examples)
    columns = target_features.columns_of(data)
    vectors = jnp.asarray(prompt(tiny, "toy_review", 3).prompt.vectors)
    options = {"config": tiny.config, "read": "mean"}
    inputs = (tiny.params, examples.tokens, examples.segments, columns, None)
    gradient = target_features.readout_gradient(vectors, *inputs, **options)

    def loss(v):
        found = steps.probe(*inputs[:3], v, config=tiny.config)["mean"]
        x = found - found.mean(0)
        x = x / jnp.sqrt(jnp.square(x).mean())
        x = np.asarray(x, np.float64)
        ridge = x.shape[1] * np.eye(len(x))
        w = x.T @ np.linalg.solve(x @ x.T + ridge, columns)
        # What the weights minimise: the error and their own size.
        error = np.square(columns - x @ w).sum()
        return (error + x.shape[1] * np.square(w).sum()) / columns.size

    direction = gradient / jnp.linalg.norm(gradient)
    e = 0.05
    slope = (loss(vectors + e * direction) - loss(vectors - e * direction)) / (
        2 * e
    )
    assert slope == pytest.approx(float(jnp.linalg.norm(gradient)), rel=0.05)


def test_first_steps_of_many_sources_are_each_one_s_own(
    tiny, bank, cache, monkeypatch
):
    def losses(sources, *, cached=False):
        return pj.score(
            sources=sources,
            targets=["toy_review"],
            metrics=("first_steps",),
            backbone=tiny,
            max_length=32,
            examples=32,
            steps=7,
            cached=cached,
        ).values["first_steps"][:, 0]

    together = losses(bank)
    alone = [losses({name: bank[name]})[0] for name in sorted(bank)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len(set(together.tolist())) == len(bank)
    assert np.all(together < 0)
    # What is kept is not run again; what is new is, alone.
    first, *others = sorted(bank)
    losses({name: bank[name] for name in others}, cached=True)
    real, ran = first_steps.first_steps_losses, []

    def counted(*args, **options):
        ran.append([prompt.info.task for prompt in args[2]])
        return real(*args, **options)

    monkeypatch.setattr(scorer.first_steps, "first_steps_losses", counted)
    again = losses(bank, cached=True)
    np.testing.assert_allclose(again, together, atol=1e-5)
    assert ran == [[bank[first].info.task]]
    losses(bank, cached=True)
    assert len(ran) == 1


@pytest.mark.parametrize("task", ["toy_review", "toy_topic"])
def test_both_halves_of_first_steps_have_every_class(tiny, task, monkeypatch):
    halves = []
    monkeypatch.setattr(
        first_steps,
        "_together",
        lambda b, r, sources, learnt, judged, p: (
            halves.append((learnt, judged)) or np.zeros(len(sources))
        ),
    )
    run = runs.make_run(task=task, backbone=tiny.id, method="pot")
    first_steps.first_steps_losses(
        tiny, run, [prompt(tiny, task, 0)], train_rows(tiny, task, 80)
    )
    ((learnt, judged),) = halves
    classes = set(range(len(specs.get(task).labels)))
    assert set(learnt.labels) == set(judged.labels) == classes
    assert len(learnt) == len(judged) == 40


def test_changed_labels_are_not_read_from_the_cache(
    tiny, bank, cache, monkeypatch
):
    def probe():
        return pj.score(
            sources=bank,
            targets=["toy_review"],
            metrics=("probe", "logme"),
            backbone=tiny,
            max_length=32,
        ).values

    before = probe()
    assert len(list((cache / "vectors").rglob("*.npy"))) == 6
    load = scorer.load_view

    def relabelled(*args, **options):
        rows = load(*args, **options)
        shuffled = np.random.default_rng(0).permutation(rows.labels)
        return dataclasses.replace(rows, labels=shuffled)

    monkeypatch.setattr(scorer, "load_view", relabelled)
    after = probe()
    for metric, values in before.items():
        assert not np.allclose(values, after[metric]), metric


def test_the_features_are_read_once_for_all_metrics(
    tiny, bank, cache, monkeypatch, padded
):
    calls = []
    probe = probing.probe_lanes

    def counted(*args, **options):
        calls.append(options["read"])
        return probe(*args, **options)

    monkeypatch.setattr(probing, "probe_lanes", counted)
    options = {"backbone": tiny, "max_length": 32, "cached": False}
    names = ("logme", "h_score", "probe")
    pj.score(sources=bank, targets=["toy_review"], metrics=names, **options)
    assert len(calls) == len(bank)
    calls.clear()
    pj.score(sources=bank, targets=bank, metrics=("panda",), **options)
    assert len(calls) == len(bank)


def test_no_metric_reads_the_evaluation_split(tiny, bank, cache, monkeypatch):
    one = {"toy_review": bank["toy_review"]}
    splits = []
    load = scorer.load_view

    def watched(task, split, **options):
        splits.append(split)
        return load(task, split, **options)

    monkeypatch.setattr(scorer, "load_view", watched)
    monkeypatch.setattr(
        evaluation, "load_view", lambda *a, **k: pytest.fail("another way")
    )
    pj.score(
        sources=one,
        targets=one,
        metrics=tuple(transfer_metrics.METRICS),
        backbone=tiny,
        examples=16,
        steps=2,
    )
    assert set(splits) == {"train"}


@pytest.mark.parametrize(
    ("kind", "task"),
    [("choice", "copa"), ("tags", "conll04"), ("regression", "stsb")],
)
def test_rows_of_every_kind_have_targets(tiny, tmp_path, cache, kind, task):
    import made_up_data

    made_up_data.write(tmp_path)
    scores = pj.score(
        sources={"a": prompt(tiny, task, 0), "b": prompt(tiny, task, 1)},
        targets=[task],
        metrics=("logme", "h_score", "probe", "gradient"),
        backbone=tiny,
        data_dir=tmp_path,
        max_length=32,
    )
    assert specs.get(task).kind == kind
    for metric, values in scores.values.items():
        assert np.isfinite(values).all(), metric


def test_a_target_without_labels_is_left_out_by_name(
    tiny, bank, tmp_path, cache
):
    import made_up_data

    made_up_data.write(tmp_path)
    with pytest.warns(RuntimeWarning, match="'logme' leaves target 'squad'"):
        scores = pj.score(
            sources=bank,
            targets=["squad", "toy_review"],
            metrics=("logme",),
            backbone=tiny,
            data_dir=tmp_path,
            max_length=48,
        )
    assert np.isnan(scores.values["logme"][:, 0]).all()
    assert np.isfinite(scores.values["logme"][:, 1]).all()
    assert scores.top("squad", metric="logme") == []


def test_what_cannot_be_compared_is_said(tiny, bank, tmp_path, cache):
    def refused(match, **changes):
        options = {"sources": bank, "targets": bank, "backbone": tiny}
        with pytest.raises(UserError, match=match):
            pj.score(**{**options, **changes})

    refused("Unknown metric 'pandas'", metrics=("pandas",))
    refused("Unknown metric 'pandas'", metrics=("e_avg+pandas",))
    refused("learned from results", metrics=("e_avg+1.5*prior",))
    refused("task without a prompt", targets=["rte"], metrics=("panda",))
    refused("Unknown task 'rtee'", targets=["rtee"], metrics=("logme",))
    refused("holds no prompt", sources={})
    longer = {**bank, "long": prompt(tiny, "toy_topic", 9, length=6)}
    refused("'long' has .*6", sources=longer, metrics=("e_avg",))
    refused("'long' has", sources=longer, metrics=("first_steps",))
    # Outputs have one width whatever the prompt's length.
    mixed = pj.score(
        sources=longer, targets=bank, metrics=("panda",), backbone=tiny
    )
    assert np.isfinite(mixed.values["panda"]).all()
    other = prompt(tiny, "toy_topic", 1)
    info = PromptInfo(
        **{**vars(other.info), "fingerprint": "0" * 16, "backbone": "other"}
    )
    strangers = {**bank, "stranger": StoredPrompt(other.prompt, info)}
    refused("stranger", sources=strangers, metrics=("panda",))
    refused("stranger", sources=strangers, metrics=("e_avg",), backbone=None)
    # Also where source and target are of one name.
    refused(
        "prompts of one backbone",
        sources={"toy_topic": StoredPrompt(other.prompt, info)},
        metrics=("e_avg",),
        backbone=None,
    )
    refused("each once", targets=[], metrics=("logme",))
    refused("each once", targets=["rte", "rte_text"], metrics=("logme",))
    broken = Prompt(np.full_like(other.prompt.vectors, np.nan), {})
    refused(
        "bad of the sources has vectors that are not finite",
        sources={**bank, "bad": StoredPrompt(broken, other.info)},
    )
    refused("layers 1 to 2", readout="layer_3")
    refused("none of the backbone's", on_layers="5:")
    refused("FROM:TO", on_layers="all")
    refused("examples is 0", examples=0)


def test_one_corrupt_folder_is_named_before_anything_is_run(
    tiny, bank, tmp_path, cache, monkeypatch
):
    for name, stored in bank.items():
        save_prompt(tmp_path / "bank" / name, stored.prompt, stored.info)
    damaged = tmp_path / "bank/toy_topic/adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    monkeypatch.setattr(
        probing, "probe_lanes", lambda *a, **k: pytest.fail("ran")
    )
    with pytest.raises(UserError, match="toy_topic"):
        pj.score(
            sources=tmp_path / "bank",
            targets=tmp_path / "bank",
            backbone=tiny,
        )
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no prompt folders"):
        pj.score(sources=empty, targets=bank, backbone=tiny)


def test_the_verbs_score_rank_and_judge(tiny, bank, tmp_path, cache, capsys):
    for name, stored in bank.items():
        save_prompt(tmp_path / "bank" / name, stored.prompt, stored.info)
    folder = str(tmp_path / "bank")

    def verb(*words):
        assert cli.main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    common = (f"--sources={folder}", "--examples=20", "--max_length=32")
    verb(
        "score",
        *common,
        "--targets=toy_review,toy_topic",
        "--metrics=logme, probe",
        f"--out_dir={tmp_path / 'out'}",
    )
    with (tmp_path / "out/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == {"logme", "probe"}
    ranked = verb("rank", *common, "--target=toy_review", "--metric=logme")
    best = max(
        (
            r
            for r in rows
            if (r["target"], r["metric"]) == ("toy_review", "logme")
            and r["source"] != "toy_review"
        ),
        key=lambda row: float(row["score"]),
    )
    assert ranked.splitlines()[0].endswith(best["source"])
    truth = tmp_path / "truth.csv"
    lines = ["source,target,score"] + [
        f"{r['source']},{r['target']},{r['score']}"
        for r in rows
        if r["metric"] == "logme"
    ]
    truth.write_text("\n".join(lines) + "\n")
    out = tmp_path / "ranking"
    said = verb(
        "evaluate-ranking",
        f"--scores={tmp_path / 'out/scores.csv'}",
        f"--truth={truth}",
        "--resamples=50",
        "--permutations=50",
        f"--out_dir={out}",
        "--scatters=false",
    )
    assert "logme" in said
    found = json.loads((out / "ranking.json").read_text())
    assert found
    assert (
        cli.main(["evaluate-ranking", "--scores=x", "--truth=y", "--ks=a"]) == 2
    )
    assert "whole numbers" in capsys.readouterr().err
    shutil.rmtree(out)


def test_the_settings_name_every_metric():
    assert tuple(transfer_metrics.METRICS) == registry.METRICS.names.own
    assert arguments.Rank.metric == transfer_metrics.RANKING
    assert runs.Run.transfer_metric == transfer_metrics.DEFAULT


def test_combinations_are_scored_and_rank_without_the_target(tiny, bank, cache):
    options = {"backbone": tiny, "examples": 20}
    name = "e_avg+0.5*on"
    scores = pj.score(
        sources=bank, targets=bank, metrics=(name, "on"), **options
    )
    assert list(scores.values) == [name, "on"]
    parts = pj.score(
        sources=bank, targets=bank, metrics=("e_avg", "on"), **options
    )
    expected = combine.combined(parts, None, name)
    np.testing.assert_array_equal(scores.values[name], expected)
    ranked = pj.rank("toy_topic", sources=bank, metric=name, **options)
    others = {n: p for n, p in bank.items() if n != "toy_topic"}
    alone = pj.score(
        sources=others,
        targets={"toy_topic": bank["toy_topic"]},
        metrics=(name,),
        **options,
    )
    assert dict(ranked) == dict(
        zip(alone.sources, alone.values[name][:, 0], strict=True)
    )
    only = {"toy_topic": bank["toy_topic"]}
    assert pj.rank("toy_topic", sources=only, **options) == []


def test_ten_thousand_stored_vectors_are_one_product():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10_000, 384)), rng.normal(size=(100, 384))
    lowered = jax.jit(similarity.activation_similarity).lower(
        a.astype(np.float32), b.astype(np.float32)
    )
    text = lowered.compile().as_text()
    assert text.count(" dot(") + text.count("custom-call") <= 1
    found = similarity.activation_similarity(a, b)
    expected = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (
        b / np.linalg.norm(b, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(found, expected, atol=1e-6)
