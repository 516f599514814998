"""T5 and mT5 from and to Hugging Face folders, against transformers itself."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import t5x_writing as writing
import torch
from transformers import (
    BertConfig,
    BertModel,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from panda_jax import UserError
from panda_jax.interop import hf
from panda_jax.interop.t5x import load_t5x
from panda_jax.models import bert, t5
from panda_jax.models.trees import flatten
from panda_jax.prompts import Prompt

RELEASED = (
    pathlib.Path(__file__).parents[3] / "shared/data/t5x_tiny/checkpoint_3"
)
TOLERANCE = 1e-4
SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 20,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
OURS = t5.T5Config(
    vocab_size=40,
    width=16,
    layers=2,
    decoder_layers=3,
    heads=3,
    head_dim=6,
    ffn=20,
    buckets=8,
    max_distance=20,
)
GATED = {"activation": "gelu_new", "gated": True, "tied": False}
SHARED = "shared.weight"
HEAD = "lm_head.weight"


def torch_model(kind: str):
    """A random T5 1.0, T5 1.1 or mT5, each weight of it random."""
    if kind == "t5":
        model = T5ForConditionalGeneration(T5Config(**SIZES))
    elif kind == "t5_1_1":
        config = T5Config(
            **SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False
        )
        model = T5ForConditionalGeneration(config)
    else:
        config = MT5Config(**SIZES, tie_word_embeddings=False)
        model = MT5ForConditionalGeneration(config)
    torch.manual_seed(0)
    if kind != "t5":
        # transformers 5 ties what its configuration says is not tied.
        model.lm_head.weight = torch.nn.Parameter(torch.empty(40, 16))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module", params=["t5", "t5_1_1", "mt5"])
def model(request):
    return torch_model(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    made = {}
    for kind in ("t5", "t5_1_1", "mt5"):
        made[kind] = tmp_path_factory.mktemp(kind)
        torch_model(kind).save_pretrained(made[kind])
    return made


@pytest.fixture
def folder(folders, tmp_path) -> pathlib.Path:
    """T5 1.1, to spoil."""
    return shutil.copytree(folders["t5_1_1"], tmp_path / "model")


def change_config(folder: pathlib.Path, **fields) -> None:
    """Sets fields of `config.json`; None takes one away."""
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | fields
    raw = {key: value for key, value in raw.items() if value is not None}
    path.write_text(json.dumps(raw))


def change_tensors(folder: pathlib.Path, change) -> None:
    """Rewrites the weights after `change(tensors)`."""
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def logits_of(params, config) -> np.ndarray:
    inputs = np.arange(1, 13).reshape(2, 6)
    targets = np.arange(13, 21).reshape(2, 4)
    prompt = Prompt(np.zeros((0, config.width), np.float32), {})
    return np.asarray(t5.apply(params, config, inputs, targets, prompt)[0])


def torch_logits(model) -> np.ndarray:
    targets = torch.arange(13, 21).reshape(2, 4)
    with torch.no_grad():
        return model(
            input_ids=torch.arange(1, 13).reshape(2, 6),
            decoder_input_ids=torch.nn.functional.pad(targets[:, :-1], (1, 0)),
        ).logits.numpy()


def test_a_folder_of_transformers_loads_with_the_same_logits(model, tmp_path):
    model.save_pretrained(tmp_path)
    params, config = hf.load(tmp_path)
    tied = model.lm_head.weight is model.shared.weight
    expected = OURS if tied else dataclasses.replace(OURS, **GATED)
    assert config == expected
    difference = np.abs(logits_of(params, config) - torch_logits(model))
    assert difference.max() < TOLERANCE


def test_where_each_tensor_goes():
    """Spelt out for a few, on values, with the layer that is meant."""
    model = torch_model("t5_1_1")
    tensors = {k: v.numpy() for k, v in model.state_dict().items()}
    for name in ("encoder", "decoder"):
        del tensors[f"{name}.embed_tokens.weight"]
    config = dataclasses.replace(OURS, **GATED)
    ours = flatten(hf.hf_t5.t5_params(tensors, config, path="here"))
    encoder, decoder = model.encoder.block[1], model.decoder.block[2]
    for path, theirs in {
        "encoder/layers/attention/out/kernel": (
            encoder.layer[0].SelfAttention.o.weight.T
        ),
        "encoder/layers/mlp/wi_1/kernel": (
            encoder.layer[1].DenseReluDense.wi_1.weight.T
        ),
        "encoder/layers/pre_mlp_layer_norm/scale": (
            encoder.layer[1].layer_norm.weight
        ),
        "decoder/layers/self_attention/value/kernel": (
            decoder.layer[0].SelfAttention.v.weight.T
        ),
        "decoder/layers/encoder_decoder_attention/key/kernel": (
            decoder.layer[1].EncDecAttention.k.weight.T
        ),
        "decoder/layers/pre_cross_attention_layer_norm/scale": (
            decoder.layer[1].layer_norm.weight
        ),
        "decoder/layers/mlp/wo/kernel": (
            decoder.layer[2].DenseReluDense.wo.weight.T
        ),
    }.items():
        last = ours[path][-1]
        np.testing.assert_array_equal(last, theirs.detach(), err_msg=path)
    bias = model.decoder.block[0].layer[0].SelfAttention
    np.testing.assert_array_equal(
        ours["decoder/relpos_bias/rel_embedding"],
        bias.relative_attention_bias.weight.detach().T,
    )
    np.testing.assert_array_equal(
        ours["decoder/logits_dense/kernel"], model.lm_head.weight.detach().T
    )


def test_an_exported_folder_is_what_transformers_loads(model, tmp_path):
    model.save_pretrained(tmp_path / "theirs")
    params, config = hf.load_t5(tmp_path / "theirs")
    hf.save(tmp_path / "ours", params, config)
    loaded, report = T5ForConditionalGeneration.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.config.pad_token_id == loaded.config.decoder_start_token_id
    # They were random: equal means that each came to its place.
    theirs = loaded.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(theirs[name], value), name
    np.testing.assert_array_equal(
        torch_logits(loaded.eval()), torch_logits(model)
    )
    again, same = hf.load(tmp_path / "ours")
    assert same == config
    for path, value in flatten(again).items():
        np.testing.assert_array_equal(value, flatten(params)[path])


def assert_transformers_loads(folder: pathlib.Path, params, config) -> None:
    """What `hf.save` makes of a T5: the same logits there, and back here."""
    hf.save(folder, params, config)
    loaded, report = T5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    again, same = hf.load(folder)
    assert same == config
    for path, value in flatten(again).items():
        expected = np.asarray(flatten(params)[path], np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=path)
    theirs = torch_logits(loaded.eval())
    assert theirs.std() > 0.05
    difference = np.abs(logits_of(again, config) - theirs)
    assert difference.max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("gated", [False, True], ids=["1.0", "1.1"])
def test_a_tuned_t5_is_what_transformers_loads(tmp_path, gated, tied, dtype):
    """1.0 is tied and 1.1 is not, and checkpoints of either are otherwise."""
    gate = {"activation": "gelu_new" if gated else "relu", "gated": gated}
    config = dataclasses.replace(OURS, tied=tied, **gate)
    flat = {
        path: jnp.asarray(0.3 * value, dtype)
        for path, value in writing.params_of(config).items()
    }
    params = writing.tree_of(flat)
    assert_transformers_loads(tmp_path / "model", params, config)
    head = safetensors.numpy.load_file(
        tmp_path / "model" / "model.safetensors"
    ).get(HEAD)
    assert (head is None) == tied
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    assert raw["tie_word_embeddings"] is tied


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scanned", [None, "{}"], ids=["apart", "scanned"])
def test_a_t5_of_t5x_is_what_transformers_loads(tmp_path, tied, scanned):
    written = dataclasses.replace(OURS, tied=tied)
    flat = {p: 0.3 * v for p, v in writing.params_of(written).items()}
    arrays = writing.t5x_arrays(flat, written, scanned=scanned, split=True)
    folder = writing.write_legacy(tmp_path / "checkpoint_1", arrays)
    params, config = load_t5x(folder)
    assert_transformers_loads(tmp_path / "model", params, config)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="no development data")
def test_the_t5_of_t5x_that_was_given_is_what_transformers_loads(tmp_path):
    params, config = load_t5x(RELEASED)
    assert_transformers_loads(tmp_path / "model", params, config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tuned_bert_is_what_transformers_loads(tmp_path, dtype):
    BertModel(tiny_bert()).save_pretrained(tmp_path / "theirs")
    params, config = hf.load(tmp_path / "theirs")
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype) * 2, params)
    hf.save(tmp_path / "ours", params, config)
    loaded, report = BertModel.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    again, same = hf.load(tmp_path / "ours")
    assert same == config
    for path, value in flatten(again).items():
        expected = np.asarray(flatten(params)[path], np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=path)
    tokens = np.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        theirs = loaded.eval()(torch.tensor(tokens)).pooler_output.numpy()
    prompt = Prompt(np.zeros((0, config.width), np.float32), {})
    _, aux = bert.apply(again, config, tokens, 0 * tokens, prompt)
    assert theirs.std() > 0.01
    np.testing.assert_allclose(aux["pooled"], theirs, atol=TOLERANCE)


def test_no_form_for_an_activation_of_ours(tmp_path):
    config = dataclasses.replace(OURS, activation="gelu")
    with pytest.raises(UserError, match="activation 'gelu'"):
        hf.save(tmp_path, {}, config)


# What config.json may say.


def test_a_config_of_old_leaves_defaults_out(folders, tmp_path):
    """t5-small's of 2019, but for the sizes."""
    shutil.copytree(folders["t5"], tmp_path, dirs_exist_ok=True)
    change_config(
        tmp_path,
        feed_forward_proj=None,
        is_gated_act=None,
        dense_act_fn=None,
        num_decoder_layers=None,
        relative_attention_max_distance=None,
        scale_decoder_outputs=None,
        tie_word_embeddings=None,
    )

    def cut(tensors):
        for name in [n for n in tensors if n.startswith("decoder.block.2.")]:
            del tensors[name]

    change_tensors(tmp_path, cut)
    _, config = hf.load(tmp_path)
    assert config == dataclasses.replace(
        OURS, decoder_layers=2, max_distance=128
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "umt5"}, "model_type is 'umt5'"),
        ({"model_type": ["t5"]}, "model_type is"),
        ({"feed_forward_proj": "gated-silu"}, "'gated-silu', expected 'relu'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj is 'gelu'"),
        ({"d_kv": None}, "d_kv is None"),
        ({"d_model": True}, "d_model is True"),
        ({"num_layers": 2**40}, "num_layers is 1099511627776"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776"),
        ({"scale_decoder_outputs": "no"}, "is 'no', expected true or false"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5"),
        ({"num_heads": 4}, r"has shape \(18, 16\), expected \(24, 16\)"),
    ],
)
def test_bad_configs(folder, fields, message):
    change_config(folder, **fields)
    with pytest.raises(UserError, match=message):
        hf.load(folder)


def test_mt5_needs_a_head_of_its_own(folders, tmp_path):
    shutil.copytree(folders["mt5"], tmp_path, dirs_exist_ok=True)
    change_tensors(tmp_path, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(UserError, match=f"Missing 1: .*{HEAD}"):
        hf.load(tmp_path)


def test_a_head_left_out_is_the_embeddings_where_transformers_5_says_so(
    folder,
):
    """Its untied T5s are tied unless a file unties them; old ones are not."""
    change_tensors(folder, lambda tensors: tensors.pop(HEAD))
    raw = json.loads((folder / "config.json").read_text())
    if "scale_decoder_outputs" not in raw:
        pytest.skip("transformers 4")
    assert raw["scale_decoder_outputs"] is False
    params, config = hf.load(folder)
    assert not config.tied
    flat = flatten(params)
    np.testing.assert_array_equal(
        flat["decoder/logits_dense/kernel"],
        flat["token_embedder/embedding"].T,
    )
    theirs = T5ForConditionalGeneration.from_pretrained(folder).eval()
    difference = np.abs(logits_of(params, config) - torch_logits(theirs))
    assert difference.max() < TOLERANCE
    change_config(folder, scale_decoder_outputs=None, tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"Missing 1: .*{HEAD}"):
        hf.load(folder)


# What the weights may hold.


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_narrow_types_are_read_exactly(folder, dtype):
    full, _ = hf.load(folder)

    def narrow(tensors):
        for name, value in tensors.items():
            tensors[name] = value.astype(dtype)

    change_tensors(folder, narrow)
    params, _ = hf.load(folder)
    for path, value in flatten(params).items():
        assert value.dtype == np.float32
        expected = flatten(full)[path].astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(value, expected)


def test_copies_of_the_embeddings_must_be_equal(folders, tmp_path):
    shutil.copytree(folders["t5"], tmp_path, dirs_exist_ok=True)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD)
    for name in names:

        def add(tensors, name=name):
            tensors[name] = tensors[SHARED].copy()

        change_tensors(tmp_path, add)
    assert hf.load(tmp_path)[1] == OURS
    for name in names:

        def spoil(tensors, name=name):
            tensors[name][3, 4] += 1

        def mend(tensors, name=name):
            tensors[name] = tensors[SHARED].copy()

        change_tensors(tmp_path, spoil)
        with pytest.raises(UserError, match=f"{name}.*differs from.*{SHARED}"):
            hf.load(tmp_path)
        change_tensors(tmp_path, mend)


def test_the_bias_that_cross_attention_never_had_is_left_out(folder):
    def add(tensors):
        name = "layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[f"decoder.block.0.{name}"] = np.ones((8, 3), np.float32)

    before, _ = hf.load(folder)
    change_tensors(folder, add)
    after, _ = hf.load(folder)
    assert flatten(before).keys() == flatten(after).keys()


@pytest.mark.parametrize(
    "name",
    [
        SHARED,
        HEAD,
        "encoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.1.layer.1.DenseReluDense.wi_0.weight",
        "decoder.block.2.layer.1.EncDecAttention.v.weight",
        "decoder.block.2.layer.2.layer_norm.weight",
    ],
)
def test_a_tensor_missing_or_misspelt_fails_by_name(folder, name):
    def misspell(tensors):
        tensors[f"{name}s"] = tensors.pop(name)

    change_config(folder, scale_decoder_outputs=None, tie_word_embeddings=False)
    change_tensors(folder, misspell)
    with pytest.raises(
        UserError, match=rf"Missing 1: \['{name}'\].*Unknown 1: \['{name}s'\]"
    ):
        hf.load(folder)
    change_tensors(folder, lambda tensors: tensors.pop(f"{name}s"))
    with pytest.raises(UserError, match=rf"Missing 1: .*{name}.*Unknown 0"):
        hf.load(folder)


def test_a_tensor_that_nothing_needs_fails_by_name(folder):
    name = "encoder.block.2.layer.0.layer_norm.weight"

    def add(tensors):
        tensors[name] = np.ones(16, np.float32)

    change_tensors(folder, add)
    with pytest.raises(UserError, match=rf"Missing 0: .*Unknown 1: .*{name}"):
        hf.load(folder)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((16, 18), np.float32), r"\(16, 18\), expected \(18, 16\)"),
        (np.ones((18, 16), np.float64), "of type F64"),
        (np.ones((18, 16), np.int8), "of type I8"),
        (np.full((18, 16), np.nan, np.float32), "holds NaN or Inf"),
        (np.full((18, 16), np.inf, np.float16), "holds NaN or Inf"),
    ],
)
def test_a_wrong_tensor_is_named(folder, value, message):
    name = "decoder.block.1.layer.0.SelfAttention.k.weight"

    def put(tensors):
        tensors[name] = value

    change_tensors(folder, put)
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        hf.load(folder)


def test_a_bert_tensor_under_two_spellings(tmp_path):
    model = BertModel(tiny_bert())
    model.save_pretrained(tmp_path)

    def double(tensors):
        tensors["bert.pooler.dense.bias"] = tensors["pooler.dense.bias"].copy()

    change_tensors(tmp_path, double)
    with pytest.raises(UserError, match=r"pooler\.dense\.bias.*twice"):
        hf.load(tmp_path)


# Shards, and folders of another kind.


def tiny_bert() -> BertConfig:
    return BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=20,
    )


def test_shards_hold_the_same_model(model, tmp_path):
    bert = BertModel(tiny_bert())
    for kind, each in {"bert": bert, "t5": model}.items():
        each.save_pretrained(tmp_path / kind / "one")
        each.save_pretrained(tmp_path / kind / "many", max_shard_size="3KB")
        assert len(list((tmp_path / kind / "many").glob("*.safetensors"))) > 2
        one, config = hf.load(tmp_path / kind / "one")
        many, same = hf.load(tmp_path / kind / "many")
        assert same == config
        assert flatten(one).keys() == flatten(many).keys()
        for path, value in flatten(many).items():
            np.testing.assert_array_equal(value, flatten(one)[path])


def test_the_other_kind_is_refused_by_the_loader_of_one(folder, tmp_path):
    with pytest.raises(UserError, match="'t5', expected 'bert'"):
        hf.load_bert(folder)
    BertModel(tiny_bert()).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="'bert', expected 't5' or 'mt5'"):
        hf.load_t5(tmp_path / "bert")


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="it is no archive of torch.save"):
        hf.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="does not exist, nor model.safetens"):
        hf.load(folder)
