"""PEFT folders both ways, and the same logits through PEFT and through us."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import torch_bert
import torch_t5
import transformers
from torch_bert import HEADS, LAYERS, WIDTH

from panda_jax import errors, prompts
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.interop import hf, peft_layout, peft_pairs
from panda_jax.io import ownership
from panda_jax.models import bert
from panda_jax.models.trees import content_hash
from panda_jax.prompts import Prompt
from panda_jax.store import exchange, prompt_folders
from panda_jax.store.backbones import Backbone

P, CLASSES = 5, 3
D_KV = 6
# A task of each kind that has a head of its own.
TASKS = {"SEQ_CLS": "cb", "TOKEN_CLS": "conll04", "QUESTION_ANS": "squad"}
MODELS = {
    "SEQ_CLS": transformers.BertForSequenceClassification,
    "TOKEN_CLS": transformers.BertForTokenClassification,
    "QUESTION_ANS": transformers.BertForQuestionAnswering,
}
KINDS = {"deep": peft.PrefixTuningConfig, "shallow": peft.PromptTuningConfig}
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def _outputs(task_type: str) -> int:
    return {"TOKEN_CLS": 9, "QUESTION_ANS": 2}.get(task_type, CLASSES)


@pytest.fixture(scope="module")
def encoder() -> transformers.BertModel:
    torch.manual_seed(0)
    return transformers.BertModel(torch_bert.config(num_labels=CLASSES)).eval()


@pytest.fixture(scope="module")
def backbone(encoder, tmp_path_factory) -> Backbone:
    folder = tmp_path_factory.mktemp("bert")
    encoder.save_pretrained(folder)
    params, config = hf.load_bert(folder)
    return _backbone(params, config)


def _backbone(params, config) -> Backbone:
    return Backbone(
        id="theirs",
        config=config,
        params=params,
        tokenizer=Tokenizer.builtin(),
        fingerprint=content_hash(params),
    )


def _torch_model(task_type: str, encoder: transformers.BertModel):
    """The encoder with a new head of PEFT's task type."""
    torch.manual_seed(1)
    model = MODELS[task_type](torch_bert.config(num_labels=_outputs(task_type)))
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    return model.eval()


def _peft_folder(folder: pathlib.Path, model, config):
    """A folder that PEFT wrote, of random numbers, and PEFT's model."""
    torch.manual_seed(2)
    made = peft.get_peft_model(model, config).eval()
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5)
        assert parameter.requires_grad == any(
            part in name for part in ("prompt_encoder", "modules_to_save")
        )
    made.save_pretrained(folder)
    return made


# PEFT takes the segments for these and does not pass them on; the table of
# pairs, held below, says so.
NO_SEGMENTS = ("QUESTION_ANS", "FEATURE_EXTRACTION")


def _batch(task_type: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    tokens = torch.randint(4, 50, (3, 8))
    mask = torch.arange(8)[None] < torch.tensor([8, 5, 3])[:, None]
    segments = (torch.arange(8)[None] > 2) & mask
    segments &= torch.tensor(task_type not in NO_SEGMENTS)
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask.long(),
        "token_type_ids": segments.long(),
    }


def _their_logits(model) -> np.ndarray:
    """Torch's logits with what PEFT read, through PEFT where it runs.

    A deep prompt is given to transformers as a cache, too: some pairs of
    versions refuse to do that in PEFT.
    """
    config = model.peft_config["default"]
    deep = config.peft_type == peft.PeftType.PREFIX_TUNING
    batch = _batch(config.task_type)
    form = peft_pairs.form("deep" if deep else "shallow", config.task_type)
    found = []
    with torch.no_grad():
        if deep:
            found.append(_without_peft(model, batch).numpy())
        out = torch_bert.through_peft(model, form, **batch)
    if out is not None:
        found.append(_logits(out, 0 if deep else P).numpy())
    assert found
    np.testing.assert_allclose(found[-1], found[0], atol=1e-5, rtol=0)
    return found[0]


def _logits(out, early: int) -> torch.Tensor:
    """Those of the text: a shallow prompt's own positions come first."""
    if "logits" in out:
        logits = out.logits
    else:
        logits = torch.stack([out.start_logits, out.end_logits], -1)
    if logits.ndim == 2:
        return logits
    assert logits.shape[1] == early + 8
    return logits[:, early:]


def _without_peft(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the bare encoder, and PEFT's vectors and head."""
    encoder, rows = model.base_model.bert, len(batch["input_ids"])
    mask = torch.nn.functional.pad(batch["attention_mask"], (P, 0), value=1)
    out = encoder(
        **batch | {"attention_mask": mask},
        **torch_bert.as_past(encoder, model.get_prompt(rows)),
    )
    task_type = model.peft_config["default"].task_type
    if task_type == "QUESTION_ANS":
        return model.base_model.qa_outputs(out.last_hidden_state)
    per_token = task_type == "TOKEN_CLS"
    read = out.last_hidden_state if per_token else out.pooler_output
    return model.base_model.classifier(read)


def _our_logits(backbone: Backbone, prompt: Prompt, task_type: str):
    batch = _batch(task_type)
    logits, _ = bert.apply(
        backbone.params,
        backbone.config,
        batch["input_ids"].numpy(),
        batch["token_type_ids"].numpy(),
        prompt,
        per_token=task_type != "SEQ_CLS",
    )
    return np.asarray(logits)


def _assert_same_logits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert theirs.std() > 0.05
    if theirs.ndim == 3:
        real = _batch("")["attention_mask"].numpy().astype(bool)
        ours, theirs = ours[real], theirs[real]
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


# --- BERT ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", MODELS)
def test_a_folder_that_peft_wrote(tmp_path, encoder, backbone, task_type, kind):
    config = KINDS[kind](task_type=task_type, num_virtual_tokens=P)
    model = _peft_folder(
        tmp_path / "p", _torch_model(task_type, encoder), config
    )
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    tensors = safetensors.torch.load_file(tmp_path / "p" / TENSORS)
    rows = tensors["prompt_embeddings"].numpy()
    vectors = stored.prompt.vectors
    assert vectors.dtype == np.float32
    if kind == "deep":
        assert vectors.shape == (LAYERS, 2, P, HEADS, WIDTH // HEADS)
        for layer, (keys, values, *_) in enumerate(model.get_prompt(1)):
            theirs = torch.stack([keys, values])[:, 0].swapaxes(1, 2)
            np.testing.assert_array_equal(
                vectors[layer], theirs.detach().numpy()
            )
    else:
        np.testing.assert_array_equal(vectors, rows)
    module = "qa_outputs" if task_type == "QUESTION_ANS" else "classifier"
    np.testing.assert_array_equal(
        stored.prompt.head["kernel"],
        tensors[f"base_model.{module}.weight"].numpy().T,
    )
    np.testing.assert_array_equal(
        stored.prompt.head["bias"], tensors[f"base_model.{module}.bias"]
    )
    _assert_same_logits(
        _our_logits(backbone, stored.prompt, task_type), _their_logits(model)
    )
    info = stored.info
    assert (info.task, info.method, info.kind) == ("p", "import-peft", kind)
    assert (info.task_type, info.fingerprint) == (
        task_type,
        backbone.fingerprint,
    )
    # It is stored as it came, and so PEFT reads it back from our folder.
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, info)
    again = peft.PeftModel.from_pretrained(
        _torch_model(task_type, encoder), str(tmp_path / "q")
    )
    np.testing.assert_array_equal(
        _their_logits(again.eval()), _their_logits(model)
    )


def _random_prompt(shape: tuple[int, ...], outputs: int) -> Prompt:
    rng = np.random.default_rng(0)
    head = {
        "kernel": rng.normal(size=(WIDTH, outputs)).astype(np.float32),
        "bias": rng.normal(size=outputs).astype(np.float32),
    }
    vectors = rng.normal(size=shape).astype(np.float32)
    return Prompt(vectors, head if outputs else {})


def _info(
    prompt: Prompt, backbone: Backbone, task: str
) -> prompt_folders.PromptInfo:
    return prompt_folders.PromptInfo(
        task=task,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        kind=prompt.kind,
        method="prompt",
    )


@pytest.mark.parametrize("how", ["stored", "exported"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", MODELS)
def test_peft_computes_what_we_compute(
    tmp_path, encoder, backbone, task_type, kind, how
):
    shape = prompts.prompt_shape(
        kind, P, layers=LAYERS, width=WIDTH, heads=HEADS
    )
    prompt = _random_prompt(shape, _outputs(task_type))
    info = _info(prompt, backbone, TASKS[task_type])
    if how == "stored":
        prompt_folders.save_prompt(tmp_path / "p", prompt, info)
    else:
        stored = prompt_folders.StoredPrompt(prompt, info)
        written = exchange.export_prompt("peft", stored, tmp_path / "p")
        assert written == tmp_path / "p"
        names = {path.name for path in written.iterdir()}
        names.remove(ownership.LISTING)
        assert names == {CONFIG, TENSORS, prompt_folders.INFO, "README.md"}
        # What PEFT itself writes: without our own description.
        (written / prompt_folders.INFO).unlink()
    config = json.loads((tmp_path / "p" / CONFIG).read_text())
    assert config["task_type"] == task_type
    module = "qa_outputs" if task_type == "QUESTION_ANS" else "classifier"
    assert config["modules_to_save"] == [module]
    model = peft.PeftModel.from_pretrained(
        _torch_model(task_type, encoder), str(tmp_path / "p")
    )
    _assert_same_logits(
        _our_logits(backbone, prompt, task_type), _their_logits(model.eval())
    )
    back = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    np.testing.assert_array_equal(back.prompt.vectors, prompt.vectors)
    np.testing.assert_array_equal(
        back.prompt.head["kernel"], prompt.head["kernel"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_without_a_head(tmp_path, encoder, backbone, kind):
    config = KINDS[kind](task_type="FEATURE_EXTRACTION", num_virtual_tokens=P)
    made = _peft_folder(tmp_path / "p", _copy(encoder), config)
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    assert stored.prompt.head == {}
    _assert_same_features(backbone, stored.prompt, made)
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    loaded = prompt_folders.load_prompt(tmp_path / "q")
    np.testing.assert_array_equal(loaded.prompt.vectors, stored.prompt.vectors)
    # What PEFT makes of ours, with other numbers.
    other = Prompt(-stored.prompt.vectors, {})
    exchange.export_prompt(
        "peft", prompt_folders.StoredPrompt(other, stored.info), tmp_path / "r"
    )
    for folder, prompt in (("q", stored.prompt), ("r", other)):
        model = peft.PeftModel.from_pretrained(
            _copy(encoder), str(tmp_path / folder)
        )
        _assert_same_features(backbone, prompt, model.eval())


def _assert_same_features(backbone: Backbone, prompt: Prompt, model) -> None:
    batch = _batch("FEATURE_EXTRACTION")
    tokens, segments = (
        batch[name].numpy() for name in ("input_ids", "token_type_ids")
    )
    with torch.no_grad():
        theirs = model(**batch)
    _, aux = bert.apply(
        backbone.params, backbone.config, tokens, segments, prompt
    )
    hidden = theirs.last_hidden_state.numpy()
    # A shallow prompt's own positions come first.
    hidden = hidden[:, hidden.shape[1] - 8 :]
    ours = np.asarray(aux["hidden"])
    _assert_same_logits(ours[:, ours.shape[1] - 8 :], hidden)
    _assert_same_logits(np.asarray(aux["pooled"]), theirs.pooler_output.numpy())


def _copy(encoder: transformers.BertModel) -> transformers.BertModel:
    model = transformers.BertModel(torch_bert.config(num_labels=CLASSES))
    model.load_state_dict(encoder.state_dict())
    return model.eval()


# --- T5 ---


def _t5(encoder_layers: int, decoder_layers: int, *, gated: bool = False):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50,
        d_model=WIDTH,
        d_kv=D_KV,
        d_ff=32,
        num_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def _t5_backbone(folder: pathlib.Path, model) -> Backbone:
    model.save_pretrained(folder)
    return _backbone(*hf.load_t5(folder))


@pytest.mark.parametrize(
    ("submodules", "gated"), [(None, False), (1, True), (2, False)]
)
def test_a_shallow_t5_folder_that_peft_wrote(tmp_path, submodules, gated):
    model = _t5(2, 3, gated=gated)
    backbone = _t5_backbone(tmp_path / "t5", model)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        num_transformer_submodules=submodules,
    )
    made = _peft_folder(tmp_path / "p", model, config)
    rows = made.prompt_encoder["default"].embedding.weight.detach().numpy()
    assert rows.shape == (P if submodules == 1 else 2 * P, WIDTH)
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    assert stored.prompt.head == {}
    np.testing.assert_array_equal(stored.prompt.vectors, rows[:P])
    torch_t5.assert_as_peft(
        backbone.params, backbone.config, stored.prompt, made
    )
    # Stored by us, PEFT reads it again.
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    made = peft.PeftModel.from_pretrained(
        _t5(2, 3, gated=gated), str(tmp_path / "q")
    )
    torch_t5.assert_as_peft(
        backbone.params, backbone.config, stored.prompt, made.eval()
    )


@pytest.mark.parametrize(
    ("decoder_layers", "pairs"),
    [(1, 1), (2, 2), (2, 3), (3, 3), (4, 4)],
)
def test_a_deep_t5_folder_that_peft_wrote(tmp_path, decoder_layers, pairs):
    model = _t5(2, decoder_layers)
    backbone = _t5_backbone(tmp_path / "t5", model)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        num_layers=pairs,
        token_dim=HEADS * D_KV,
    )
    made = _peft_folder(tmp_path / "p", model, config)
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    vectors = stored.prompt.vectors
    assert vectors.shape == (decoder_layers, 2, P, HEADS, D_KV)
    cache = made.get_prompt(1).self_attention_cache
    for layer, ours in zip(cache.layers, vectors, strict=False):
        for theirs, mine in zip((layer.keys, layer.values), ours, strict=True):
            theirs = theirs[0].swapaxes(0, 1).detach().numpy()
            np.testing.assert_array_equal(mine, theirs)
    torch_t5.assert_as_peft(
        backbone.params, backbone.config, stored.prompt, made
    )


@pytest.mark.parametrize(
    ("kind", "decoder_layers", "gated", "how"),
    [
        ("shallow", 3, False, "exported"),
        ("shallow", 3, True, "stored"),
        ("deep", 3, False, "stored"),
        ("deep", 3, True, "exported"),
        ("deep", 2, False, "exported"),
    ],
)
def test_peft_computes_what_we_compute_with_t5(
    tmp_path, kind, decoder_layers, gated, how
):
    # transformers generates only where the decoder is no deeper.
    model = _t5(3, decoder_layers, gated=gated)
    backbone = _t5_backbone(tmp_path / "t5", model)
    shape = prompts.prompt_shape(
        kind,
        P,
        layers=decoder_layers,
        width=WIDTH,
        heads=HEADS,
        head_dim=D_KV,
    )
    prompt = _random_prompt(shape, 0)
    info = _info(prompt, backbone, "rte")
    if how == "stored":
        prompt_folders.save_prompt(tmp_path / "p", prompt, info)
        loaded = prompt_folders.load_prompt(tmp_path / "p").prompt
        np.testing.assert_array_equal(loaded.vectors, prompt.vectors)
        # A copy without our own description is a foreign folder.
        (tmp_path / "p" / prompt_folders.INFO).unlink()
    else:
        exchange.export_prompt(
            "peft", prompt_folders.StoredPrompt(prompt, info), tmp_path / "p"
        )
    made = peft.PeftModel.from_pretrained(model, str(tmp_path / "p")).eval()
    torch_t5.assert_as_peft(backbone.params, backbone.config, prompt, made)
    back = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    np.testing.assert_array_equal(back.prompt.vectors, prompt.vectors)


def test_the_layers_of_a_t5_file():
    for layers in range(1, 9):
        layout = peft_layout.Layout.of((layers, 2, P, 4, 3), "SEQ_2_SEQ_LM")
        order = layout.order(layers)
        assert layout.pairs == layers + (layers % 2 == 0)
        assert len(set(order)) == layers
        assert layout.shape(layers) == (layers, 2, P, 4, 3)
        with pytest.raises(errors.UserError, match="expected at least 12"):
            layout.shape(12)


# --- Without a backbone ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_bert_folder_without_a_backbone(tmp_path, encoder, backbone, kind):
    config = KINDS[kind](task_type="TOKEN_CLS", num_virtual_tokens=P)
    _peft_folder(tmp_path / "p", _torch_model("TOKEN_CLS", encoder), config)
    _change(tmp_path / "p", base_model_name_or_path="bert-base-uncased")
    stored = exchange.import_prompt("peft", tmp_path / "p")
    assert stored.info == prompt_folders.PromptInfo(
        task="p",
        backbone="bert-base-uncased",
        fingerprint=None,
        kind=kind,
        method="import-peft",
        task_type="TOKEN_CLS",
    )
    bound = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    np.testing.assert_array_equal(stored.prompt.vectors, bound.prompt.vectors)
    for name, array in bound.prompt.head.items():
        np.testing.assert_array_equal(stored.prompt.head[name], array)
    # Our own folder, with a backbone later, is what it is with one at once.
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    again = exchange.import_prompt("peft", tmp_path / "q", backbone=backbone)
    assert again.info == bound.info
    assert prompt_folders.content_hash(
        again.prompt
    ) == prompt_folders.content_hash(bound.prompt)
    exchange.export_prompt("peft", stored, tmp_path / "r")
    written = [tmp_path / name / TENSORS for name in "qr"]
    assert len({path.read_bytes() for path in written}) == 1
    with pytest.raises(errors.UserError, match="names 'bert-base-uncased'"):
        prompt_folders.load_prompt(
            tmp_path / "q", fingerprint=backbone.fingerprint
        )


@pytest.mark.parametrize("decoder_layers", [2, 3, 4])
@pytest.mark.parametrize("how", ["theirs", "ours"])
def test_a_deep_t5_folder_without_a_backbone(tmp_path, decoder_layers, how):
    """The file may have one pair more than the decoder layers."""
    model = _t5(1, decoder_layers)
    backbone = _t5_backbone(tmp_path / "t5", model)
    prompt = _random_prompt((decoder_layers, 2, P, HEADS, D_KV), 0)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        num_layers=decoder_layers,
        token_dim=HEADS * D_KV,
    )
    if how == "theirs":
        _peft_folder(tmp_path / "p", model, config)
    else:
        info = _info(prompt, backbone, "rte")
        exchange.export_prompt(
            "peft", prompt_folders.StoredPrompt(prompt, info), tmp_path / "p"
        )
        (tmp_path / "p" / prompt_folders.INFO).unlink()
    stored = exchange.import_prompt("peft", tmp_path / "p")
    spare = how == "ours" and decoder_layers % 2 == 0
    layers = decoder_layers + spare
    assert stored.prompt.vectors.shape == (layers, 2, P, HEADS, D_KV)
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    loaded = prompt_folders.load_prompt(tmp_path / "q")
    assert prompt_folders.content_hash(
        loaded.prompt
    ) == prompt_folders.content_hash(stored.prompt)
    bound = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    assert bound.prompt.vectors.shape[0] == decoder_layers
    if how == "ours":
        np.testing.assert_array_equal(bound.prompt.vectors, prompt.vectors)
    later = exchange.import_prompt("peft", tmp_path / "q", backbone=backbone)
    assert later.info == dataclasses.replace(bound.info, task="p")
    np.testing.assert_array_equal(later.prompt.vectors, bound.prompt.vectors)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/models/t5-base", "/models/t5-base"),
        ("a" * 999, "a" * 200),
        ("", None),
        (None, None),
        (["t5"], None),
        ("\x1b[2Jx\ny", None),
    ],
)
def test_what_a_folder_says_of_its_backbone(folder, tmp_path, name, expected):
    """It is shown to people and written to `panda.json`, and never opened."""
    _change(folder, base_model_name_or_path=name)
    stored = exchange.import_prompt("peft", folder)
    assert stored.info.backbone == expected
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    assert prompt_folders.load_prompt(tmp_path / "q").info.backbone == expected


# --- Folders that do not fit ---


@pytest.fixture
def folder(tmp_path, backbone) -> pathlib.Path:
    shape = (LAYERS, 2, P, HEADS, WIDTH // HEADS)
    prompt = _random_prompt(shape, CLASSES)
    stored = prompt_folders.StoredPrompt(prompt, _info(prompt, backbone, "cb"))
    made = exchange.export_prompt("peft", stored, tmp_path / "p")
    (made / prompt_folders.INFO).unlink()
    return made


def _change(folder: pathlib.Path, **changes) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ({"peft_type": ["x"]}, r"peft_type is \['x'\]"),
        ({"task_type": None}, "got the tensors .*classifier"),
        ({"task_type": "CAUSAL_LM"}, "got the tensors .*classifier"),
        ({"task_type": "IMAGE_CLS"}, "task_type is 'IMAGE_CLS', expected null"),
        ({"task_type": ["SEQ_CLS"]}, "task_type is"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "num_transformer_submodules is 1"),
        ({"task_type": "QUESTION_ANS"}, "expected .'prompt_embeddings'."),
        ({"num_transformer_submodules": 2}, "is 2, expected 1 with SEQ_CLS"),
        ({"num_transformer_submodules": True}, "is True, expected 1"),
        ({"num_virtual_tokens": 6}, r"shape \[5, 96\], expected \[6, 96\]"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0"),
        ({"num_layers": 2}, r"expected \[5, 64\]"),
        ({"num_layers": 10**30}, "expected"),
        ({"num_attention_heads": 3}, "token_dim 16 is no multiple of the 3"),
        ({"num_attention_heads": 2}, "has heads 2, backbone 'theirs' has 4"),
        ({"token_dim": "16"}, "token_dim is '16'"),
    ],
)
def test_other_configurations(folder, backbone, changes, match):
    _change(folder, **changes)
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("peft", folder, backbone=backbone)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_model.lm_head.weight": torch.ones(2)}, "lm_head"),
        ({"prompt_embeddings": torch.ones(5, 95)}, r"shape \[5, 95\]"),
        ({"prompt_embeddings": torch.ones(5, 96).double()}, "float64"),
        ({"prompt_embeddings": torch.ones(5, 96) / 0}, "NaN or infinite"),
        ({"base_model.classifier.bias": torch.ones(4)}, r"expected \[4, 16\]"),
    ],
)
def test_other_tensors(folder, backbone, changes, match):
    tensors = safetensors.torch.load_file(folder / TENSORS) | changes
    safetensors.torch.save_file(tensors, folder / TENSORS)
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("peft", folder, backbone=backbone)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_torch_file_in_place_of_safetensors(folder, backbone, dtype):
    expected = exchange.import_prompt("peft", folder, backbone=backbone).prompt
    tensors = safetensors.torch.load_file(folder / TENSORS)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / TENSORS).unlink()
    got = exchange.import_prompt("peft", folder, backbone=backbone).prompt
    assert got.vectors.dtype == np.float32
    numpy_type = np.float32 if dtype == torch.float32 else np.float16
    np.testing.assert_array_equal(
        got.vectors, expected.vectors.astype(numpy_type)
    )
    np.testing.assert_array_equal(
        got.head["kernel"], expected.head["kernel"].astype(numpy_type)
    )


def test_bfloat16_is_read_as_it_is(folder, backbone):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    short = {name: t.bfloat16() for name, t in tensors.items()}
    safetensors.torch.save_file(short, folder / TENSORS)
    got = exchange.import_prompt("peft", folder, backbone=backbone).prompt
    np.testing.assert_array_equal(
        got.head["kernel"].T,
        short["base_model.classifier.weight"].float().numpy(),
    )


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_missing_and_linked_files(tmp_path, folder, backbone, name):
    (folder / name).rename(tmp_path / "elsewhere")
    with pytest.raises(errors.UserError, match=f"{name}.*(is missing|exist)"):
        exchange.import_prompt("peft", folder, backbone=backbone)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.UserError, match="link to outside"):
        exchange.import_prompt("peft", folder, backbone=backbone)


def test_the_other_family(tmp_path, folder, backbone):
    model = _t5(2, 3)
    text_to_text = _t5_backbone(tmp_path / "t5", model)
    with pytest.raises(errors.UserError, match="'SEQ_CLS', which does not fit"):
        exchange.import_prompt("peft", folder, backbone=text_to_text)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P
    )
    _peft_folder(tmp_path / "q", model, config)
    with pytest.raises(errors.UserError, match="'SEQ_2_SEQ_LM', which does"):
        exchange.import_prompt("peft", tmp_path / "q", backbone=backbone)


def test_a_decoder_deeper_than_the_file(tmp_path):
    config = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=P,
        token_dim=HEADS * D_KV,
    )
    _peft_folder(tmp_path / "p", _t5(2, 2), config)
    deeper = _t5_backbone(tmp_path / "t5", _t5(2, 3))
    with pytest.raises(errors.UserError, match="layers 2, backbone .* has 3"):
        exchange.import_prompt("peft", tmp_path / "p", backbone=deeper)


# --- What cards and docs/exchange.md say of versions ---

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "try_peft.py"
in_the_checkout = pytest.mark.skipif(
    not SCRIPT.is_file(), reason="installed without the checkout"
)


def _script():
    spec = importlib.util.spec_from_file_location("try_peft", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@in_the_checkout
def test_the_installed_pair_does_what_the_table_says(tmp_path):
    """The lines of a card of each form, run in a process without ours.

    Of a pair that the table lacks, each outcome is one that it knows.
    """
    script = _script()
    script.export_all(tmp_path)
    folders = [
        pathlib.Path(module.__file__).parent.parent
        for module in (transformers, peft)
    ]
    got = script.run_pair(tmp_path, folders)
    versions = (transformers.__version__, peft.__version__)
    assert got.pop("versions") == dict(
        zip(("transformers", "peft"), versions, strict=True)
    )
    pair = peft_pairs.find(*versions)
    for how, outcomes in got.items():
        known = [
            getattr(p, how) for p in ([pair] if pair else peft_pairs.pairs())
        ]
        assert len(outcomes) == len(known[0])
        for form, outcome in outcomes.items():
            expected = [found[form] for found in known]
            assert peft_pairs.Outcome(**outcome) in expected, form


def test_the_lines_of_a_card_run_with_every_pair():
    """Each card says so; and what PEFT does is no longer the same for all."""
    pairs = peft_pairs.pairs()
    for pair in pairs:
        for form, outcome in pair.without_peft.items():
            expected = "same"
            if form.endswith(peft_pairs.GENERATE):
                # Greedy decoding of a T5, by PEFT's forward pass.
                logits = form.removesuffix(peft_pairs.GENERATE).strip()
                expected = pair.with_peft[logits].result
            assert outcome.result == expected, (pair, form)
    deep = {pair.with_peft["deep SEQ_CLS"].result for pair in pairs}
    assert {"same", "raises"} <= deep
    versions = [(pair.transformers, pair.peft) for pair in pairs]
    assert len(set(versions)) == len(versions)
    for form in pairs[0].with_peft:
        groups = peft_pairs.grouped(form)
        told = [(a, b) for xs, ys, _ in groups for a in xs for b in ys]
        assert sorted(told) == sorted(versions)


@in_the_checkout
def test_the_document_shows_the_table():
    shown = (ROOT / "docs" / "exchange.md").read_text()
    assert _script().table() in shown
