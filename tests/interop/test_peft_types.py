"""Every type of prompt that the installed PEFT has, as PEFT itself saves it."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import torch_bert
import torch_t5
import transformers
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch_bert import HEADS, LAYERS, WIDTH

from panda_jax import errors
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.interop import hf, peft_layout, peft_pairs
from panda_jax.models import bert
from panda_jax.models.trees import content_hash
from panda_jax.prompts import Prompt
from panda_jax.store import exchange, prompt_folders
from panda_jax.store.backbones import Backbone

P, CLASSES, TASKS = 5, 3, 3
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ENCODERS = ("SEQ_CLS", "FEATURE_EXTRACTION")
SEQ_2_SEQ, CAUSAL = "SEQ_2_SEQ_LM", "CAUSAL_LM"
# Of a task type of null, on the bare encoder.
TASKLESS = "null"
MODELS = (*ENCODERS, SEQ_2_SEQ, CAUSAL, TASKLESS)
# PEFT's type -> the ways in which its vectors are made.
TYPES: dict[str, dict[str, dict[str, Any]]] = {
    "PROMPT_TUNING": {"": {}},
    "P_TUNING": {
        "mlp": {"encoder_hidden_size": 8},
        "lstm": {
            "encoder_hidden_size": 8,
            "encoder_reparameterization_type": "LSTM",
        },
    },
    "PREFIX_TUNING": {
        "": {},
        "projected": {"prefix_projection": True, "encoder_hidden_size": 8},
    },
    "MULTITASK_PROMPT_TUNING": {"": {"num_tasks": TASKS, "num_ranks": 2}},
    "CPT": {"": {"cpt_token_ids": [*range(7, 7 + P)]}},
    "CARTRIDGE": {"": {}, "trained": {"num_frozen_tokens": 0}},
}
SEVERAL = "MULTITASK_PROMPT_TUNING"
CASES = [
    (name, how, model)
    for name, ways in TYPES.items()
    for how in ways
    for model in MODELS
    # PEFT itself refuses other task types.
    if name != "CPT" or model == CAUSAL
]
_apply_bert = jax.jit(bert.apply, static_argnums=1)


def test_these_are_all_types_of_prompts():
    """A type that a later PEFT has fails here: add it, or say why not."""
    theirs = {
        str(kind.value)
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(config, peft.PromptLearningConfig)
    }
    assert theirs == TYPES.keys() == peft_layout.KINDS.keys()


def test_no_other_type_passes_for_a_prompt(tmp_path):
    """Weights that an adapter changes, however its file looks."""
    others = {kind.value for kind in peft.PeftType} - TYPES.keys()
    assert "ADAPTION_PROMPT" in others
    made = _made(tmp_path / "p", "PROMPT_TUNING", "", "FEATURE_EXTRACTION")
    assert made is not None
    for name in sorted(others):
        _change(tmp_path / "p", peft_type=name)
        with pytest.raises(errors.UserError, match=f"peft_type is '{name}', w"):
            exchange.import_prompt("peft", tmp_path / "p")


def _change(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _model(model: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    if model == SEQ_2_SEQ:
        # Of an odd number of layers, each has its own pair of the file's.
        config = transformers.T5Config(
            vocab_size=50,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=32,
            num_layers=LAYERS,
            num_heads=HEADS,
            decoder_start_token_id=0,
        )
        return transformers.T5ForConditionalGeneration(config).eval()
    if model == CAUSAL:
        # Fewer heads of keys than of queries: a prefix is narrower.
        config = transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
        )
        return transformers.LlamaForCausalLM(config).eval()
    config = torch_bert.config(num_labels=CLASSES)
    if model == "SEQ_CLS":
        return transformers.BertForSequenceClassification(config).eval()
    return transformers.BertModel(config).eval()


def _made(
    folder: pathlib.Path, name: str, how: str, model: str, **changes: Any
) -> Any:
    """PEFT's model, after it has saved its adapter of random numbers."""
    torch.manual_seed(1)
    task_type = None if model == TASKLESS else model
    settings = {"task_type": task_type, **TYPES[name][how], **changes}
    if name != "CPT":
        settings["num_virtual_tokens"] = P
    config = PEFT_TYPE_TO_CONFIG_MAPPING[name](**settings)
    if model == TASKLESS:
        # `get_peft_model` has no class for it, and this one reads and saves it.
        made = peft.PeftModel(_model(model), config)
    else:
        made = peft.get_peft_model(_model(model), config)
    for name, parameter in made.eval().named_parameters():
        trained = parameter.requires_grad or "frozen_embedding" in name
        if trained and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    made.save_pretrained(folder)
    made.save_pretrained(folder / "bin", safe_serialization=False)
    return made


def _their_vectors(made: Any, index: int | None) -> np.ndarray:
    """What PEFT puts before the input, or before the keys, as we keep it."""
    if index is None:
        got = made.get_prompt(1)
    else:
        got = made.get_prompt(1, task_ids=torch.tensor([index]))
    if isinstance(got, torch.Tensor):
        return got[0, :P].detach().numpy()
    if isinstance(got, transformers.EncoderDecoderCache):
        got = got.self_attention_cache
    pairs = [torch.stack([x.keys, x.values])[:, 0] for x in got.layers]
    return torch.stack(pairs).transpose(2, 3).detach().numpy()


def _backbone(folder: pathlib.Path, made: Any) -> Backbone:
    model = made.get_base_model()
    is_t5 = isinstance(model, transformers.T5ForConditionalGeneration)
    (model if is_t5 else getattr(model, "bert", model)).save_pretrained(folder)
    params, config = (hf.load_t5 if is_t5 else hf.load_bert)(folder)
    return Backbone(
        id="theirs",
        config=config,
        params=params,
        tokenizer=Tokenizer.builtin(),
        fingerprint=content_hash(params),
    )


@pytest.mark.parametrize(("name", "how", "model"), CASES)
def test_a_prompt_is_what_peft_makes_of_it(tmp_path, name, how, model):
    folder = tmp_path / "p"
    one_stack = name == SEVERAL and model == SEQ_2_SEQ
    changes = {"num_transformer_submodules": 1} if one_stack else {}
    made = _made(folder, name, how, model, **changes)
    index = 2 if name == SEVERAL else None
    for path in (folder, folder / "bin"):
        assert (path / TENSORS).exists() == (path == folder)
        stored = exchange.import_prompt("peft", path, task_index=index)
        np.testing.assert_allclose(
            stored.prompt.vectors,
            _their_vectors(made, index),
            atol=1e-6,
            rtol=0,
        )
    assert stored.info.fingerprint is None
    assert bool(stored.prompt.head) == (model == "SEQ_CLS")
    expected = peft_layout.TASKLESS if model == TASKLESS else model
    assert stored.info.task_type == expected
    # Ours is as good as theirs, and PEFT's when it is exported.
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    loaded = prompt_folders.load_prompt(tmp_path / "q")
    np.testing.assert_array_equal(loaded.prompt.vectors, stored.prompt.vectors)
    assert loaded.info == stored.info
    exchange.export_prompt("peft", loaded, tmp_path / "r")
    again = peft.PeftModel.from_pretrained(_model(model), str(tmp_path / "r"))
    np.testing.assert_array_equal(
        _their_vectors(again, None), stored.prompt.vectors
    )
    if model == CAUSAL:
        return
    backbone = _backbone(tmp_path / "backbone", made)
    bound = exchange.import_prompt(
        "peft", folder, backbone=backbone, task_index=index
    )
    later = exchange.import_prompt("peft", tmp_path / "q", backbone=backbone)
    np.testing.assert_array_equal(later.prompt.vectors, bound.prompt.vectors)
    assert later.info.fingerprint == backbone.fingerprint
    if model == SEQ_2_SEQ:
        torch_t5.assert_as_peft(
            backbone.params, backbone.config, bound.prompt, made, index
        )
    elif model == TASKLESS:
        assert later.info.task_type == "FEATURE_EXTRACTION"
    elif (name, model) == (SEVERAL, "FEATURE_EXTRACTION"):
        # PEFT's model of this type drops `task_ids`, and then misses them.
        _assert_same_bert(backbone, bound.prompt, again.eval(), None)
    else:
        _assert_same_bert(backbone, bound.prompt, made, index)


def _assert_same_bert(
    backbone: Backbone, prompt: Prompt, made: Any, index: int | None
) -> None:
    """Logits, or of a prompt without a head the pooled vector.

    Some pairs of versions do not take a prefix for a BERT: then transformers
    is given PEFT's as a cache.
    """
    tokens = np.random.default_rng(0).integers(4, 50, (3, 8))
    tokens[1, 5:] = 0
    batch = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(tokens != 0).long(),
        "token_type_ids": torch.zeros(3, 8).long(),
    }
    task_type = made.active_peft_config.task_type
    more = {} if index is None else {"task_ids": torch.tensor([index] * 3)}
    with torch.no_grad():
        out = torch_bert.through_peft(
            made, peft_pairs.form(prompt.kind, task_type), **batch, **more
        )
        if out is None:
            model = made.get_base_model()
            encoder = getattr(model, "bert", model)
            mask = torch.ones(3, P).long()
            batch["attention_mask"] = torch.cat(
                [mask, batch["attention_mask"]], 1
            )
            past = torch_bert.as_past(encoder, made.get_prompt(3))
            theirs = encoder(**batch, **past).pooler_output
            if prompt.head:
                theirs = model.classifier(theirs)
        else:
            theirs = out.logits if prompt.head else out.pooler_output
    logits, aux = _apply_bert(
        backbone.params,
        backbone.config,
        tokens.astype(np.int32),
        np.zeros((3, 8), np.int32),
        prompt,
    )
    ours = logits if prompt.head else aux["pooled"]
    assert theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5, rtol=0)


# --- What of these is refused, and why ---


def test_a_prefix_for_a_t5_of_one_stack(tmp_path):
    """PEFT makes one and saves it, and cannot use it on a padded batch."""
    made = _made(
        tmp_path / "p",
        "PREFIX_TUNING",
        "",
        SEQ_2_SEQ,
        num_transformer_submodules=1,
    )
    assert isinstance(made.get_prompt(1), transformers.DynamicCache)
    match = "submodules is 1, expected 2 with SEQ_2_SEQ_LM"
    with pytest.raises(errors.UserError, match=match):
        exchange.import_prompt("peft", tmp_path / "p")


def test_half_of_a_multi_task_prompt_is_the_decoders(tmp_path):
    """PEFT's outputs are longer by a prompt of the decoder's: not ours."""
    made = _made(tmp_path / "p", SEVERAL, "", SEQ_2_SEQ)
    assert len(made.prompt_encoder["default"].embedding.weight) == 2 * P
    tokens = torch.ones(1, 4).long()
    out = made(input_ids=tokens, labels=tokens, task_ids=torch.tensor([0]))
    assert out.logits.shape[1] == P + 4
    match = "second half of the rows .* stands before the decoder's input"
    with pytest.raises(errors.UserError, match=match):
        exchange.import_prompt("peft", tmp_path / "p", task_index=0)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (None, "prompts of 3 tasks: say which by --task_index=0 to 2"),
        (3, "task_index is 3, expected 0 to 2"),
        (-1, "task_index is -1, expected 0 to 2"),
    ],
)
def test_which_task_of_several(tmp_path, index, match):
    _made(tmp_path / "p", SEVERAL, "", "SEQ_CLS")
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("peft", tmp_path / "p", task_index=index)
    assert str(tmp_path / "p") in str(caught.value)


def test_one_task_needs_no_index(tmp_path):
    made = _made(tmp_path / "p", SEVERAL, "", "SEQ_CLS", num_tasks=1)
    expected = _their_vectors(made, 0)
    for index in (None, 0):
        stored = exchange.import_prompt(
            "peft", tmp_path / "p", task_index=index
        )
        np.testing.assert_allclose(stored.prompt.vectors, expected, atol=1e-6)
    # Nothing else has an index, least of all our own folder of it.
    prompt_folders.save_prompt(tmp_path / "q", stored.prompt, stored.info)
    _made(tmp_path / "r", "PROMPT_TUNING", "", "SEQ_CLS")
    np.save(tmp_path / "a.npy", expected)
    for format, name in (("peft", "q"), ("peft", "r"), ("npy", "a.npy")):
        with pytest.raises(errors.UserError, match="expected none: it holds"):
            exchange.import_prompt(format, tmp_path / name, task_index=0)


@pytest.mark.parametrize(
    ("tensor", "shape", "match"),
    [
        ("prefix_task_cols", (3, P), r"expected \[tasks, P, rank\]"),
        ("prefix_task_cols", (3, P + 1, 2), r"expected \[3, 5, 2\]"),
        ("prefix_task_rows", (2, 2, WIDTH), r"expected \[3, 2, 16\]"),
        ("prompt_embeddings", (2 * P, WIDTH), r"expected \[5, 16\]"),
        ("prefix_task_rows", None, "got the tensors"),
    ],
)
def test_factors_that_do_not_fit(tmp_path, tensor, shape, match):
    _made(tmp_path / "p", SEVERAL, "", "FEATURE_EXTRACTION")
    path = tmp_path / "p" / "bin" / "adapter_model.bin"
    tensors = torch.load(path)
    del tensors[tensor]
    if shape is not None:
        tensors[tensor] = torch.ones(shape)
    torch.save(tensors, path)
    with pytest.raises(errors.UserError, match=match):
        exchange.import_prompt("peft", path.parent, task_index=0)


def test_a_causal_prompt_is_of_no_backbone_here(tmp_path):
    _made(tmp_path / "p", "PROMPT_TUNING", "", CAUSAL)
    for model in ("FEATURE_EXTRACTION", SEQ_2_SEQ):
        made = _made(tmp_path / "other", "PROMPT_TUNING", "", model)
        backbone = _backbone(tmp_path / model, made)
        with pytest.raises(errors.UserError, match="a causal language model"):
            exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)


@pytest.mark.parametrize("model", ["FEATURE_EXTRACTION", TASKLESS])
def test_vectors_before_the_input_of_a_t5(tmp_path, model):
    """To its encoder they are the same, whatever the file says of a task."""
    made = _made(tmp_path / "t", "PROMPT_TUNING", "", SEQ_2_SEQ)
    backbone = _backbone(tmp_path / "t5", made)
    _made(tmp_path / "p", "PROMPT_TUNING", "", model)
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=backbone)
    assert stored.info.task_type == SEQ_2_SEQ
    _made(tmp_path / "q", "PREFIX_TUNING", "", "FEATURE_EXTRACTION")
    with pytest.raises(errors.UserError, match="'FEATURE_EXTRACTION', which"):
        exchange.import_prompt("peft", tmp_path / "q", backbone=backbone)


def test_a_prompt_of_no_task_type_has_one_stack(tmp_path):
    _made(tmp_path / "p", "PROMPT_TUNING", "", TASKLESS)
    _change(tmp_path / "p", num_transformer_submodules=2)
    match = "submodules is 2, expected 1 with a null task_type"
    with pytest.raises(errors.UserError, match=match):
        exchange.import_prompt("peft", tmp_path / "p")
