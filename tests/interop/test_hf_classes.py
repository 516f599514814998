"""Every class of transformers that has a backbone in it, as it is saved."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch_bert
import transformers
from torch_t5 import FAMILIES, torch_config

from panda_jax import UserError
from panda_jax.interop import hf
from panda_jax.interop.hf_layouts import locate
from panda_jax.models import bert, t5
from panda_jax.models.trees import flatten
from panda_jax.prompts import Prompt

TOLERANCE = 1e-4
SINGLE, TORCH = "model.safetensors", "pytorch_model.bin"
TOKENS = np.array([[2, 9, 8, 7, 3, 11, 3], [2, 5, 3, 0, 0, 0, 0]])
SEGMENTS = np.array([[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]])
SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
WITH_POOLER = {
    "BertModel",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
}
WITHOUT = {
    "BertForMaskedLM",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertLMHeadModel",
}
DISTILBERTS = ("DistilBertModel", "DistilBertForSequenceClassification")
ELECTRAS = ("ElectraModel", "ElectraForPreTraining")


def randomized(model):
    """No weight at what it begins with, so that none can be left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def bert_like(name: str, **changes):
    if name.startswith("DistilBert"):
        config = transformers.DistilBertConfig(
            vocab_size=50,
            dim=16,
            n_layers=2,
            n_heads=4,
            hidden_dim=24,
            max_position_embeddings=32,
        )
    elif name.startswith("Electra"):
        sizes = torch_bert.config().to_dict()
        del sizes["model_type"]
        sizes |= {"embedding_size": torch_bert.WIDTH, **changes}
        config = transformers.ElectraConfig(**sizes)
    else:
        config = torch_bert.config(**changes)
    return randomized(getattr(transformers, name)(config))


def ours(folder: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    params, config = hf.load_bert(folder)
    assert hf.sizes(folder) == config
    prompt = Prompt(np.zeros((0, config.width), np.float32), {})
    aux = bert.apply(params, config, TOKENS, SEGMENTS, prompt)[1]
    return np.asarray(aux["hidden"]), aux


def theirs(model, **given) -> np.ndarray:
    """The last hidden states of the encoder that a model has or is."""
    encoder = getattr(model, model.base_model_prefix, model)
    ids, mask = torch.tensor(TOKENS), torch.tensor(TOKENS != 0)
    with torch.no_grad():
        out = encoder(input_ids=ids, attention_mask=mask.long(), **given)
    return out.last_hidden_state.numpy()


def assert_same(folder: pathlib.Path, model) -> dict[str, np.ndarray]:
    segments = {"token_type_ids": torch.tensor(SEGMENTS)}
    if model.config.model_type == "distilbert":
        segments = {}
    expected = theirs(model, **segments)
    hidden, aux = ours(folder)
    real = TOKENS != 0
    assert expected[real].std() > 0.1
    assert np.abs(hidden - expected)[real].max() < TOLERANCE
    return aux


def as_pickle(folder: pathlib.Path, model, *, shards: int = 1) -> None:
    """The same weights as `torch.save` writes them."""
    (folder / SINGLE).unlink()
    state = model.state_dict()
    if shards == 1:
        torch.save(state, folder / TORCH)
        return
    placed = {}
    for i in range(shards):
        part = {name: state[name] for name in [*state][i::shards]}
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        torch.save(part, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / f"{TORCH}.index.json").write_text(json.dumps(index))


# BERT.


def test_the_classes_are_all_of_transformers():
    found = {
        name
        for name in dir(transformers.models.bert.modeling_bert)
        if name.startswith("Bert")
        and name.endswith(("Model", "MaskedLM", "Training", "Prediction"))
        or name.startswith("BertFor")
        and not name.endswith("Output")
    }
    found -= {"BertPreTrainedModel"}
    assert found == WITH_POOLER | WITHOUT


@pytest.mark.parametrize("name", sorted(WITH_POOLER | WITHOUT))
def test_a_bert_of_any_class_is_its_encoder(tmp_path, name):
    model = bert_like(name)
    model.save_pretrained(tmp_path)
    aux = assert_same(tmp_path, model)
    pooler = model.base_model.pooler
    assert (pooler is not None) == (name in WITH_POOLER)
    assert hf.load(tmp_path)[1].pooler == (name in WITH_POOLER)
    hidden = torch.tensor(np.asarray(aux["hidden"]))
    read = hidden[:, 0]
    if pooler is not None:
        read = pooler(hidden).detach()
    np.testing.assert_allclose(aux["pooled"], read, atol=TOLERANCE)


def test_a_bert_without_a_pooler_reads_its_first_token(tmp_path):
    model = randomized(
        transformers.BertModel(torch_bert.config(), add_pooling_layer=False)
    )
    model.save_pretrained(tmp_path)
    params, config = hf.load(tmp_path)
    assert "pooler" not in params
    head = {
        "kernel": np.eye(config.width, 3, dtype=np.float32),
        "bias": np.zeros(3, np.float32),
    }
    rng = np.random.default_rng(0)
    for shape in ((2, config.width), (3, 2, 2, 4, 4)):
        vectors = rng.normal(size=shape).astype(np.float32)
        logits, aux = bert.apply(
            params, config, TOKENS, SEGMENTS, Prompt(vectors, head)
        )
        # Of a shallow prompt's 2 + 7 positions the third is [CLS].
        first = 2 if vectors.ndim == 2 else 0
        np.testing.assert_allclose(
            logits, aux["hidden"][:, first, :3], atol=1e-6
        )
    hf.save(tmp_path / "again", params, config)
    again, same = hf.load(tmp_path / "again")
    assert same == config
    assert flatten(again).keys() == flatten(params).keys()


def test_a_bert_that_decodes_is_refused(tmp_path):
    model = bert_like("BertLMHeadModel", is_decoder=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is_decoder is True.*BertLMHeadModel"):
        hf.load(tmp_path)


def test_half_a_pooler_is_missing_the_other_half(tmp_path):
    model = bert_like("BertForSequenceClassification")
    model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / SINGLE)
    del state["bert.pooler.dense.bias"]
    safetensors.torch.save_file(state, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"Missing 1: \['pooler.dense.bias'\]"):
        hf.load(tmp_path)


def test_what_is_inside_the_encoder_must_be_known(tmp_path):
    """Around it anything may lie, but only where there is an around."""
    model = bert_like("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / SINGLE)
    around = state | {"my_head.weight": torch.ones(3)}
    safetensors.torch.save_file(around, tmp_path / SINGLE)
    hf.load(tmp_path)
    inside = state | {"bert.adapter.weight": torch.ones(3)}
    safetensors.torch.save_file(inside, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"Unknown 1: \['adapter.weight'\]"):
        hf.load(tmp_path)
    alone = {name.removeprefix("bert."): x for name, x in around.items()}
    safetensors.torch.save_file(alone, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"Unknown 1: \['my_head.weight'\]"):
        hf.load(tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_a_bert_in_torch_files(tmp_path, name, shards):
    model = bert_like(name)
    model.save_pretrained(tmp_path)
    as_pickle(tmp_path, model, shards=shards)
    assert_same(tmp_path, model)


def test_torch_files_that_are_damaged(tmp_path):
    model = bert_like("BertModel")
    model.save_pretrained(tmp_path)
    as_pickle(tmp_path, model, shards=2)
    index = tmp_path / f"{TORCH}.index.json"
    raw = json.loads(index.read_text())
    name = next(iter(raw["weight_map"]))
    del raw["weight_map"][name]
    index.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=rf"only the file has \['{name}'\]"):
        hf.load(tmp_path)
    raw["weight_map"][name] = "config.json"
    index.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="is no torch file in the folder"):
        hf.load(tmp_path)
    (tmp_path / TORCH).write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="The torch file .* it is damaged"):
        hf.load(tmp_path)


def test_a_torch_tensor_is_read_as_it_lies(tmp_path):
    """A view that is transposed, in a storage that another shares."""
    model = bert_like("BertModel")
    model.save_pretrained(tmp_path)
    (tmp_path / SINGLE).unlink()
    state = model.state_dict()
    name = "encoder.layer.0.intermediate.dense.weight"
    state[name] = state[name].T.contiguous().T
    both = torch.stack([state["pooler.dense.bias"]] * 2)
    state["pooler.dense.bias"] = both[1]
    torch.save(state, tmp_path / TORCH)
    assert_same(tmp_path, model)


@pytest.mark.parametrize("name", [*DISTILBERTS, *ELECTRAS])
def test_berts_under_other_names(tmp_path, name):
    model = bert_like(name)
    model.save_pretrained(tmp_path / "theirs")
    assert_same(tmp_path / "theirs", model)
    params, config = hf.load(tmp_path / "theirs")
    assert not config.pooler
    # It goes on as the BERT that it is.
    hf.save(tmp_path / "ours", params, config)
    same = transformers.BertModel.from_pretrained(
        tmp_path / "ours", add_pooling_layer=False
    ).eval()
    assert_same(tmp_path / "ours", same)


def test_an_electra_that_projects_its_embeddings_is_refused(tmp_path):
    bert_like("ElectraModel", embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="embedding_size is 8 and hidden_size"):
        hf.load(tmp_path)


# T5.


def t5_of(name: str, family: str = "1.0"):
    config = torch_config(FAMILIES[family])
    if name.startswith("MT5"):
        config = transformers.MT5Config(
            **{
                k: v
                for k, v in config.to_dict().items()
                if k not in ("model_type", "scale_decoder_outputs")
            }
        )
    return randomized(getattr(transformers, name)(config))


def hidden_states(params, config) -> tuple[np.ndarray, np.ndarray]:
    """Of the encoder, and the logits."""
    prompt = Prompt(np.zeros((0, config.width), np.float32), {})
    _, _, aux = t5.encode(params, config, TOKENS, prompt)
    targets = np.arange(13, 21).reshape(2, 4)
    logits, _ = t5.apply(params, config, TOKENS, targets, prompt)
    return np.asarray(aux["hidden"]), np.asarray(logits)


def assert_equal(params, others) -> None:
    assert flatten(params).keys() == flatten(others).keys()
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, flatten(others)[path])


def assert_same_t5(folder: pathlib.Path, model) -> None:
    hidden, logits = hidden_states(*hf.load(folder))
    ids, mask = torch.tensor(TOKENS), torch.tensor(TOKENS != 0).long()
    encoder = model.get_encoder()
    # As a whole, with the head that transformers gives it.
    whole = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    start = torch.nn.functional.pad(
        torch.arange(13, 21).reshape(2, 4)[:, :-1], (1, 0)
    )
    with torch.no_grad():
        out = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        says = whole(
            input_ids=ids, attention_mask=mask, decoder_input_ids=start
        ).logits
    real = TOKENS != 0
    assert np.abs(hidden - out.numpy())[real].max() < TOLERANCE
    assert np.abs(logits - says.numpy()).max() < TOLERANCE


T5S = (
    "T5Model",
    "T5ForConditionalGeneration",
    "T5ForQuestionAnswering",
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", T5S)
def test_a_t5_of_any_class_is_its_encoder_and_decoder(tmp_path, name, family):
    model = t5_of(name, family)
    model.save_pretrained(tmp_path)
    assert_same_t5(tmp_path, model)


def test_a_t5_that_classifies_is_the_t5_inside(tmp_path):
    """transformers itself cannot load its weights into the other classes."""
    model = t5_of("T5ForSequenceClassification")
    model.save_pretrained(tmp_path / "theirs")
    inner = transformers.T5ForConditionalGeneration(model.config)
    state = model.transformer.state_dict()
    inner.load_state_dict(state | {HEAD: state[SHARED]})
    inner.save_pretrained(tmp_path / "inner")
    one, config = hf.load(tmp_path / "theirs")
    other, same = hf.load(tmp_path / "inner")
    assert config == same
    assert_equal(one, other)


@pytest.mark.parametrize(
    "name", ["T5EncoderModel", "T5ForTokenClassification", "MT5EncoderModel"]
)
def test_a_t5_without_its_decoder_is_refused_by_name(tmp_path, name):
    t5_of(name).save_pretrained(tmp_path)
    message = rf"an encoder's alone \({name}\).*save T5ForConditionalGeneration"
    with pytest.raises(UserError, match=message):
        hf.load(tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_t5_in_torch_files(tmp_path, family, shards):
    """Those have the embeddings under each of their names."""
    model = t5_of("T5ForConditionalGeneration", family)
    model.save_pretrained(tmp_path)
    safe, config = hf.load(tmp_path)
    as_pickle(tmp_path, model, shards=shards)
    params, same = hf.load(tmp_path)
    assert config == same
    assert_equal(params, safe)


@pytest.mark.parametrize("name", [*COPIES, HEAD])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_under_any_of_their_names(tmp_path, name, family):
    model = t5_of("T5ForConditionalGeneration", family)
    model.save_pretrained(tmp_path)
    before, config = hf.load(tmp_path)
    state = safetensors.torch.load_file(tmp_path / SINGLE)
    state.pop(HEAD, None)
    state[name] = state.pop(SHARED)
    safetensors.torch.save_file(state, tmp_path / SINGLE)
    after, same = hf.load(tmp_path)
    assert config == same
    assert_equal(after, before)


def test_what_safetensors_itself_writes_of_a_t5(tmp_path):
    """Its `save_model` keeps one name of several, the first by the alphabet."""
    model = t5_of("T5ForConditionalGeneration")
    model.save_pretrained(tmp_path)
    safetensors.torch.save_model(model, str(tmp_path / SINGLE))
    assert SHARED not in safetensors.torch.load_file(tmp_path / SINGLE)
    assert_same_t5(tmp_path, model)


def test_a_head_of_its_own_does_not_stand_for_the_embeddings(tmp_path):
    model = t5_of("T5ForConditionalGeneration", "1.1")
    model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / SINGLE)
    state[HEAD] = state.pop(SHARED)
    safetensors.torch.save_file(state, tmp_path / SINGLE)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text()) | {"tie_word_embeddings": False}
    raw.pop("scale_decoder_outputs", None)
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=rf"Missing 1: \['{SHARED}'\]"):
        hf.load(tmp_path)


# Layouts.


def modules(*kinds: tuple[str, str]) -> str:
    return json.dumps(
        [
            {"idx": i, "name": str(i), "path": path, "type": kind}
            for i, (kind, path) in enumerate(kinds)
        ]
    )


CLASS = "sentence_transformers.models.Transformer"
POOLING = ("sentence_transformers.models.Pooling", "1_Pooling")


@pytest.mark.parametrize("place", ["", "0_Transformer", "encoder"])
def test_a_model_of_sentence_transformers_is_its_encoder(tmp_path, place):
    model = bert_like("BertModel")
    model.save_pretrained(tmp_path / place)
    text = modules((CLASS, place), POOLING)
    (tmp_path / "modules.json").write_text(text)
    assert locate(tmp_path) == tmp_path / place
    assert_same(locate(tmp_path), model)


def test_an_older_one_has_no_list_of_modules(tmp_path):
    bert_like("BertModel").save_pretrained(tmp_path / "0_Transformer")
    assert locate(tmp_path) == tmp_path / "0_Transformer"
    shutil.copytree(tmp_path / "0_Transformer", tmp_path, dirs_exist_ok=True)
    assert locate(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            modules(("sentence_transformers.models.CLIPModel", "")),
            r"lists the modules .*CLIPModel'\], expected a Transformer",
        ),
        ("{}", "expected a Transformer"),
        ("[1]", "is no list of SentenceTransformers' modules"),
        ("[[[", "is no list of SentenceTransformers' modules"),
        (" " * 70000, "more than 65536 bytes"),
        (modules((CLASS, "../x")), "expected a name inside the folder"),
        (modules((CLASS, "/etc")), "expected a name inside the folder"),
    ],
)
def test_lists_of_modules_that_are_wrong(tmp_path, text, message):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UserError, match=message):
        locate(tmp_path)
