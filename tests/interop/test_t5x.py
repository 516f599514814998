"""T5X checkpoints, legacy and orbax, scanned and not, against their source."""

import dataclasses
import json
import pathlib
import shutil

import flax.serialization
import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_writing as writing
import tensorstore as ts
from t5x_writing import CONFIG

from panda_jax import UserError
from panda_jax.interop import t5x_files
from panda_jax.interop.t5x import load_t5x
from panda_jax.models import t5
from panda_jax.models.trees import flatten
from panda_jax.prompts import Prompt

RELEASED = (
    pathlib.Path(__file__).parents[3] / "shared/data/t5x_tiny/checkpoint_3"
)
SMALL = dataclasses.replace(
    CONFIG, activation="relu", gated=False, tied=True, decoder_layers=1
)
SCANNED = ("{}", "layers")


@pytest.fixture(scope="module")
def flat() -> dict[str, np.ndarray]:
    return writing.params_of(CONFIG)


@pytest.fixture(scope="module")
def legacy(flat, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("legacy") / "checkpoint_7"
    return writing.write_legacy(folder, writing.t5x_arrays(flat, CONFIG))


@pytest.fixture
def copy(legacy, tmp_path) -> pathlib.Path:
    """A checkpoint to spoil."""
    return shutil.copytree(legacy, tmp_path / "checkpoint_7")


def assert_same(params, expected: dict[str, np.ndarray]) -> None:
    got = flatten(params)
    assert got.keys() == expected.keys()
    for path, value in expected.items():
        assert got[path].dtype == np.float32
        np.testing.assert_array_equal(
            got[path], value.astype(np.float32), err_msg=path
        )


def save_orbax(folder: pathlib.Path, tree, **options) -> pathlib.Path:
    handler = ocp.PyTreeCheckpointHandler(**options)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))
    return folder


def change_index(folder: pathlib.Path, change) -> None:
    """Rewrites the index after `change(target)`."""
    index = msgpack.unpackb((folder / "checkpoint").read_bytes())
    change(index["optimizer"]["target"])
    (folder / "checkpoint").write_bytes(msgpack.packb(index))


# The released checkpoint.


@pytest.mark.skipif(not RELEASED.is_dir(), reason="no development data")
def test_released_checkpoint_equals_flax_and_tensorstore():
    """All 52 arrays, those in the index and those in zarr folders."""
    params, config = load_t5x(RELEASED)
    assert config == t5.T5Config(
        width=4,
        layers=2,
        decoder_layers=2,
        heads=2,
        head_dim=2,
        ffn=8,
        buckets=4,
        activation="gelu_new",
        gated=True,
        tied=False,
    )
    index = flax.serialization.msgpack_restore(
        (RELEASED / "checkpoint").read_bytes()
    )
    target = index["optimizer"]["target"]
    ours = flatten(params)
    checked = {"inline": 0, "zarr": 0}

    def walk(node, path):
        if isinstance(node, dict) and "driver" not in node:
            for key, child in node.items():
                walk(child, [*path, key])
            return
        if isinstance(node, dict):
            spec = {
                "driver": "zarr",
                "kvstore": {
                    "driver": "file",
                    "path": f"{RELEASED}/{node['kvstore']['path']}/",
                },
            }
            value = ts.open(spec).result().read().result()
            checked["zarr"] += 1
        else:
            value = node
            checked["inline"] += 1
        layer = [key for key in path if key.startswith("layers_")]
        name = "/".join("layers" if key in layer else key for key in path)
        got = ours[name]
        if layer:
            got = got[int(layer[0].removeprefix("layers_"))]
        np.testing.assert_array_equal(got, value, err_msg=name)
        assert got.dtype == value.dtype == np.float32

    walk(target, [])
    assert checked == {"inline": 14, "zarr": 38}
    assert len(t5x_files.target_arrays(RELEASED)) == 52
    prompt = Prompt(np.zeros((0, 4), np.float32), {})
    tokens = np.array([[5, 6, 7, 0]])
    logits, _ = t5.apply(params, config, tokens, tokens, prompt)
    assert np.isfinite(logits).all()


# Legacy checkpoints.


def test_legacy_checkpoint_is_what_was_written(legacy, flat):
    params, config = load_t5x(legacy)
    assert config == CONFIG
    assert_same(params, flat)


def test_the_written_zarr_folders_are_what_tensorstore_reads(legacy, flat):
    """Of those with a `.zarray`: the writer of this test is right."""
    arrays = writing.t5x_arrays(flat, CONFIG)
    seen = 0
    for path in legacy.glob("*/.zarray"):
        name = path.parent.name.removeprefix("target.").replace(".", "/")
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{path.parent}/"},
        }
        value = ts.open(spec).result().read().result()
        np.testing.assert_array_equal(value, arrays[name])
        seen += 1
    kernels = [name for name in arrays if name.endswith(("kernel", "ding"))]
    assert 0 < seen < len(kernels)


def test_the_folder_above_a_checkpoint_will_do(legacy, flat):
    assert_same(load_t5x(legacy.parent)[0], flat)


def test_of_two_checkpoints_one_must_be_named(copy):
    shutil.copytree(copy, copy.parent / "checkpoint_8")
    with pytest.raises(UserError, match=r"2 checkpoints.*checkpoint_8"):
        load_t5x(copy.parent)


@pytest.mark.parametrize("config", [SMALL, CONFIG], ids=["1.0", "1.1"])
@pytest.mark.parametrize("split", [False, True], ids=["joined", "split"])
@pytest.mark.parametrize("scanned", [None, *SCANNED])
def test_every_layout_and_its_sizes(tmp_path, config, split, scanned):
    flat = writing.params_of(config, seed=1)
    arrays = writing.t5x_arrays(flat, config, scanned=scanned, split=split)
    params, got = load_t5x(writing.write_legacy(tmp_path / "c", arrays))
    assert got == config
    assert_same(params, flat)


def test_one_bias_a_layer_is_read_where_all_are_equal(tmp_path, flat):
    arrays = writing.t5x_arrays(flat, CONFIG, scanned="{}", split=True)
    for stack, count in (("encoder", 2), ("decoder", 3)):
        bias = arrays.pop(f"{stack}/relpos_bias/rel_embedding")
        arrays[f"{stack}/{stack}/relpos_bias/rel_embedding"] = np.repeat(
            bias[:, None], count, axis=1
        )
    params, config = load_t5x(writing.write_legacy(tmp_path / "t5", arrays))
    assert config == CONFIG
    assert_same(params, flat)
    arrays["decoder/decoder/relpos_bias/rel_embedding"][0, 2, 0] += 1
    with pytest.raises(UserError, match=r"decoder/decoder/relpos.*umT5"):
        load_t5x(writing.write_legacy(tmp_path / "umt5", arrays))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_narrow_types_are_read_exactly(tmp_path, flat, kind):
    arrays = writing.rounded(writing.t5x_arrays(flat, CONFIG), kind)
    params, _ = load_t5x(writing.write_legacy(tmp_path, arrays))
    assert_same(params, writing.rounded(flat, kind))


def test_types_of_old_specifications(copy, flat):
    """Of tensorstore before 0.1.14: another place for path and type."""

    def age(target):
        spec = target["token_embedder"]["embedding"]
        spec["dtype"] = "float32"
        del spec["metadata"]["dtype"]
        spec["path"] = spec["kvstore"].pop("path") + "/"
        spec["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}

    (copy / "target.token_embedder.embedding/.zarray").unlink(missing_ok=True)
    change_index(copy, age)
    assert_same(load_t5x(copy)[0], flat)


# A given configuration.


def test_a_given_configuration_is_kept_and_held_against_the_arrays(legacy):
    told = dataclasses.replace(
        CONFIG, dropout=0.0, max_distance=20, activation="gelu", remat=True
    )
    assert load_t5x(legacy, told)[1] == told
    for name, value in {"heads": 5, "tied": True, "layers": 3}.items():
        wrong = dataclasses.replace(CONFIG, **{name: value})
        with pytest.raises(UserError, match=f"{name} is .*expected {value}"):
            load_t5x(legacy, wrong)


# Orbax checkpoints.


def state_of(arrays: dict[str, np.ndarray]) -> dict:
    """What T5X hands to orbax: `train_state.state_dict()`."""
    return {
        "target": writing.tree_of(jax.tree.map(jax.numpy.asarray, arrays)),
        "state": {
            "step": jax.numpy.asarray(3),
            "param_states": {"m": jax.numpy.full(4, np.nan), "v": None},
        },
    }


@pytest.mark.parametrize("ocdbt", [True, False], ids=["ocdbt", "folders"])
@pytest.mark.parametrize("scanned", [None, "{}"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_orbax_checkpoint(tmp_path, flat, ocdbt, scanned, kind):
    arrays = writing.t5x_arrays(flat, CONFIG, scanned=scanned, split=True)
    folder = save_orbax(
        tmp_path / "checkpoint_3",
        state_of(writing.rounded(arrays, kind)),
        use_ocdbt=ocdbt,
    )
    assert (folder / "manifest.ocdbt").exists() == ocdbt
    params, config = load_t5x(folder)
    assert config == CONFIG
    assert_same(params, writing.rounded(flat, kind))


def test_orbax_manager_folders_as_t5x_writes_them(tmp_path, flat):
    state = state_of(writing.t5x_arrays(flat, CONFIG))
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    with ocp.CheckpointManager(
        tmp_path, item_handlers=handlers, options=options
    ) as manager:
        item = ocp.args.PyTreeSave(state)
        manager.save(3, args=ocp.args.Composite(state=item))
    assert (tmp_path / "checkpoint_3/state/_METADATA").is_file()
    for folder in (tmp_path, tmp_path / "checkpoint_3"):
        assert_same(load_t5x(folder)[0], flat)


@pytest.mark.parametrize("ocdbt", [True, False], ids=["ocdbt", "folders"])
def test_orbax_checkpoint_of_old(tmp_path, flat, ocdbt):
    """An index of placeholders in place of `_METADATA`."""
    arrays = writing.t5x_arrays(flat, CONFIG)
    folder = save_orbax(tmp_path / "c", state_of(arrays), use_ocdbt=ocdbt)
    (folder / "_METADATA").unlink()
    target = {
        path: f"PLACEHOLDER://target.{path.replace('/', '.')}"
        for path in arrays
    }
    index = {"target": writing.tree_of(target), "state": {"step": 3}}
    (folder / "checkpoint").write_bytes(msgpack.packb(index))
    assert_same(load_t5x(folder)[0], flat)


def test_orbax_array_missing_or_misspelt_fails_by_name(tmp_path, flat):
    arrays = writing.t5x_arrays(flat, CONFIG)
    bias = arrays.pop("encoder/layers_1/mlp/wo/kernel")
    folder = save_orbax(tmp_path / "missing", state_of(arrays))
    name = r"encoder/layers_1/mlp/wo/kernel"
    with pytest.raises(UserError, match=rf"Missing 1: \['{name}'\]"):
        load_t5x(folder)
    arrays["encoder/layers_1/mlp/wo/kernal"] = bias
    folder = save_orbax(tmp_path / "typo", state_of(arrays))
    with pytest.raises(UserError, match=r"Unknown 1: .*wo/kernal"):
        load_t5x(folder)


def test_orbax_store_with_a_lost_file(tmp_path, flat):
    arrays = writing.t5x_arrays(flat, CONFIG)
    folder = save_orbax(tmp_path / "c", state_of(arrays))
    for path in (folder / "ocdbt.process_0/d").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="is damaged"):
        load_t5x(folder)


def test_orbax_of_zarr3_is_refused(tmp_path, flat):
    state = state_of(writing.t5x_arrays(flat, CONFIG))
    folder = save_orbax(tmp_path / "c", state, use_zarr3=True)
    with pytest.raises(UserError, match="use_zarr3 True"):
        load_t5x(folder)


# Faults, by name.


def pop(path: str):
    def change(target):
        *parents, last = path.split("/")
        for name in parents:
            target = target[name]
        return target.pop(last)

    return change


def rename(path: str, last: str):
    def change(target):
        value = pop(path)(target)
        for name in path.split("/")[:-1]:
            target = target[name]
        target[last] = value

    return change


@pytest.mark.parametrize(
    "path",
    [
        "token_embedder/embedding",
        "encoder/relpos_bias/rel_embedding",
        "decoder/relpos_bias/rel_embedding",
        "encoder/layers_0/attention/query/kernel",
        "decoder/layers_0/mlp/wo/kernel",
        "decoder/layers_2/pre_cross_attention_layer_norm/scale",
        "decoder/decoder_norm/scale",
    ],
)
def test_array_missing_or_misspelt_fails_by_name(copy, path):
    missing = shutil.copytree(copy, copy.parent / "missing")
    change_index(missing, pop(path))
    with pytest.raises(UserError, match=path) as error:
        load_t5x(missing)
    assert "issing" in str(error.value)
    change_index(copy, rename(path, "oops"))
    with pytest.raises(UserError, match="oops|is missing"):
        load_t5x(copy)


def test_a_missing_layer_is_named(copy):
    change_index(copy, pop("decoder/layers_1"))
    with pytest.raises(UserError, match="decoder/layers_1 is missing"):
        load_t5x(copy)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(13, np.float32), r"encoder_norm/scale.*\(13,\).*\(12,\)"),
        (np.full(12, np.inf, np.float32), "encoder_norm/scale.*NaN or Inf"),
        (np.ones(12), "encoder_norm/scale.*float64"),
        (np.ones(12, np.int32), "encoder_norm/scale.*int32"),
    ],
)
def test_a_wrong_array_is_named(copy, value, message):
    def change(target):
        target["encoder"]["encoder_norm"]["scale"] = writing.packed(value)

    change_index(copy, change)
    with pytest.raises(UserError, match=message):
        load_t5x(copy)


def test_heads_that_contradict_each_other(tmp_path, flat):
    arrays = writing.t5x_arrays(flat, CONFIG, split=True)
    for stack in ("encoder", "decoder"):
        arrays[f"{stack}/relpos_bias/rel_embedding"] = np.ones((5, 6), "f4")
    folder = writing.write_legacy(tmp_path / "c", arrays)
    with pytest.raises(UserError, match=r"heads \(4, 5\).*has 5"):
        load_t5x(folder)


def test_metadata_that_contradict_each_other(copy):
    path = next(iter(sorted(copy.glob("*wo*/.zarray"))))
    metadata = json.loads(path.read_text())
    metadata |= {"shape": [6, 12], "chunks": [1, 1]}
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"has shape .* in the index"):
        load_t5x(copy)


def test_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert t5x_files.find(folder) is None
        with pytest.raises(UserError, match="is no T5X checkpoint"):
            load_t5x(folder)
