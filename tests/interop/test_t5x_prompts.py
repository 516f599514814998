"""Checkpoints of prompt-tuning runs: the prompt, and the backbone about it."""

import dataclasses
import pathlib

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_writing as writing
from t5x_writing import CONFIG

from panda_jax import cli
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError
from panda_jax.interop.t5x import load_t5x
from panda_jax.models.bert import BertConfig
from panda_jax.models.trees import content_hash, flatten
from panda_jax.store import exchange, prompt_folders
from panda_jax.store.backbones import Backbone

P, D = 3, CONFIG.width
# As prompt-tuning names it now, and with fewer modules about it.
NAMES = (
    "encoder/prompt/prompt/prompt",
    "encoder/prompt/prompt",
    "encoder/prompt",
)
NAME = NAMES[0]


@pytest.fixture(scope="module")
def flat() -> dict[str, np.ndarray]:
    return writing.params_of(CONFIG)


@pytest.fixture(scope="module")
def weights(flat) -> dict[str, np.ndarray]:
    return writing.t5x_arrays(flat, CONFIG)


@pytest.fixture(scope="module")
def backbone(weights, tmp_path_factory) -> Backbone:
    """Of a checkpoint of the weights alone, as the run began with."""
    folder = tmp_path_factory.mktemp("pretrained") / "checkpoint_1100000"
    return _backbone(writing.write_legacy(folder, weights))


def _backbone(folder: pathlib.Path) -> Backbone:
    params, config = load_t5x(folder)
    return Backbone(
        id="theirs",
        config=config,
        params=params,
        tokenizer=Tokenizer.builtin(),
        fingerprint=content_hash(params),
    )


def _vectors(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def _write(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], *, form: str
) -> pathlib.Path:
    if form == "legacy":
        return writing.write_legacy(folder, arrays)
    tree = writing.tree_of(jax.tree.map(jax.numpy.asarray, arrays))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=form == "ocdbt")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave({"target": tree}))
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["legacy", "ocdbt", "folders"])
def test_a_run_of_prompt_tuning(tmp_path, weights, flat, backbone, name, form):
    vectors = _vectors(P, D)
    run = tmp_path / "rte_run"
    folder = _write(
        run / "checkpoint_1130000", weights | {name: vectors}, form=form
    )
    # The weights are a backbone, the same as before the run.
    params, config = load_t5x(folder)
    assert config == CONFIG
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flat[path])
    assert content_hash(params) == backbone.fingerprint
    for path in (folder, run):
        stored = exchange.import_prompt("t5x", path)
        assert stored.prompt.vectors.tobytes() == vectors.tobytes()
        assert stored.info == prompt_folders.PromptInfo(
            task="rte_run",
            backbone=None,
            fingerprint=None,
            kind="shallow",
            method="import-t5x",
            task_type="SEQ_2_SEQ_LM",
        )
    bound = exchange.import_prompt("t5x", folder, backbone=backbone)
    assert bound.info.fingerprint == backbone.fingerprint
    assert bound.prompt.vectors.tobytes() == vectors.tobytes()
    # Also of the checkpoint itself.
    itself = exchange.import_prompt("t5x", folder, backbone=_backbone(folder))
    assert itself.info == bound.info


def test_the_verb(tmp_path, weights, capsys):
    arrays = weights | {NAME: _vectors(P, D)}
    folder = writing.write_legacy(tmp_path / "r" / "checkpoint_3", arrays)
    argv = ["import", "t5x", str(folder), f"--out_dir={tmp_path / 'p'}"]
    assert cli.main([*argv, "--task=rte"]) == 0
    assert capsys.readouterr().out.endswith("p: rte, shallow [3, 12]\n")
    loaded = prompt_folders.load_prompt(tmp_path / "p")
    assert loaded.prompt.vectors.tobytes() == _vectors(P, D).tobytes()


@pytest.mark.parametrize("scanned", [None, "{}"])
@pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
def test_every_layout_proves_its_backbone(
    tmp_path, flat, backbone, scanned, split
):
    arrays = writing.t5x_arrays(flat, CONFIG, scanned=scanned, split=split)
    arrays[NAME] = _vectors(P, D)
    folder = writing.write_legacy(tmp_path / "c", arrays)
    exchange.import_prompt("t5x", folder, backbone=backbone)
    query = next(name for name in arrays if "/query/" in name)
    arrays[query] = arrays[query] + 1
    folder = writing.write_legacy(tmp_path / "other", arrays)
    with pytest.raises(UserError, match=f"{query}' differs from the backbone"):
        exchange.import_prompt("t5x", folder, backbone=backbone)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_narrow_types(tmp_path, weights, backbone, kind):
    """Of the checkpoint, of the backbone, and of both."""
    vectors = _vectors(P, D)
    arrays = writing.rounded(weights | {NAME: vectors}, kind)
    folder = writing.write_legacy(tmp_path / "narrow", arrays)
    narrow = dataclasses.replace(
        backbone,
        params=jax.tree.map(
            lambda x: jax.numpy.asarray(x, kind), backbone.params
        ),
    )
    dtype = getattr(ml_dtypes, kind, kind)
    for one in (backbone, narrow):
        stored = exchange.import_prompt("t5x", folder, backbone=one)
        np.testing.assert_array_equal(
            stored.prompt.vectors, vectors.astype(dtype).astype(np.float32)
        )
    folder = writing.write_legacy(tmp_path / "wide", weights | {NAME: vectors})
    assert exchange.import_prompt("t5x", folder, backbone=narrow)


def test_a_prompt_alone(tmp_path, backbone):
    """Without weights there is nothing to hold a backbone against."""
    vectors = _vectors(P, D)
    folder = writing.write_legacy(tmp_path / "c", {NAME: vectors})
    stored = exchange.import_prompt("t5x", folder, backbone=backbone)
    assert stored.prompt.vectors.tobytes() == vectors.tobytes()
    with pytest.raises(UserError, match="is missing"):
        load_t5x(folder)


def test_a_model_that_is_a_decoder(tmp_path, backbone):
    arrays = {
        "decoder/prompt/prompt/prompt": _vectors(P, D),
        "decoder/decoder_norm/scale": _vectors(D),
        "token_embedder/embedding": _vectors(50, D),
    }
    folder = writing.write_legacy(tmp_path / "c", arrays)
    stored = exchange.import_prompt("t5x", folder)
    assert stored.info.task_type == "CAUSAL_LM"
    assert stored.prompt.vectors.tobytes() == _vectors(P, D).tobytes()
    with pytest.raises(UserError, match="a causal language model"):
        exchange.import_prompt("t5x", folder, backbone=backbone)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({}, r"holds no prompt.*backbone \(--backbone=DIR\)"),
        (
            {"decoder/prompt/prompt/prompt": _vectors(P, D)},
            "'decoder/prompt/prompt/prompt', which stands before the decoder",
        ),
        (
            {NAME: _vectors(P, D), "decoder/prompt/prompt": _vectors(P, D)},
            "holds the prompts .*a prompt for both stacks",
        ),
        (
            {"encoder/layers_0/prompt/prompt/prompt": _vectors(P, D)},
            "'encoder/layers_0/prompt/prompt/prompt'.*each layer",
        ),
        (
            {
                "encoder/prompt/prompt/shared_prompt": _vectors(P, D),
                "encoder/prompt/prompt/task_prompts/embedding": _vectors(4, 36),
            },
            "shared_prompt'.*several tasks",
        ),
        ({NAME: _vectors(P, D + 1)}, r"shape \(3, 13\), .*width \(12,\)"),
        ({NAME: _vectors(D)}, r"shape \(12,\), expected \[P, D\]"),
        ({NAME: _vectors(P, D) / np.float32(0)}, "holds NaN or Inf"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_other_checkpoints(tmp_path, weights, backbone, more, match):
    folder = writing.write_legacy(tmp_path / "c", weights | more)
    with pytest.raises(UserError, match=match) as caught:
        exchange.import_prompt("t5x", folder)
    assert str(folder) in str(caught.value)
    # Whatever was trained, it left the backbone as it was.
    params, _ = load_t5x(folder)
    assert content_hash(params) == backbone.fingerprint


def test_other_backbones(tmp_path, weights, backbone):
    arrays = weights | {NAME: _vectors(P, D)}
    folder = writing.write_legacy(tmp_path / "c", arrays)
    deeper = dataclasses.replace(backbone.config, layers=3)
    with pytest.raises(UserError, match="layers is 2 .*expected 3. The prompt"):
        exchange.import_prompt(
            "t5x", folder, backbone=dataclasses.replace(backbone, config=deeper)
        )
    encoder = dataclasses.replace(
        backbone, config=BertConfig(50, width=D, layers=2, heads=4, ffn=8)
    )
    with pytest.raises(UserError, match="'SEQ_2_SEQ_LM', which does not fit"):
        exchange.import_prompt("t5x", folder, backbone=encoder)


@pytest.mark.parametrize(
    "path",
    [
        "rte_run/numpy_checkpoints/checkpoint_5/encoder.prompt.prompt.prompt",
        "rte_run/checkpoint_5/encoder.prompt.prompt",
        "checkpoints/rte_run.npy",
    ],
)
def test_the_numpy_file_beside_a_checkpoint(tmp_path, path):
    """Prompt-tuning writes one too, under the array's name."""
    (tmp_path / path).parent.mkdir(parents=True)
    with (tmp_path / path).open("wb") as file:
        np.save(file, _vectors(P, D))
    stored = exchange.import_prompt("npy", tmp_path / path)
    assert stored.info.task == "rte_run"
    assert stored.prompt.vectors.tobytes() == _vectors(P, D).tobytes()
