import dataclasses
import json
import pathlib
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import torch_bert
import transformers
from torch_bert import HEADS, LAYERS, WIDTH

from panda_jax import errors, prompts
from panda_jax.interop import peft_pairs
from panda_jax.io import ownership
from panda_jax.store import prompt_folders

CLASSES = 3
SHAPES = {
    "deep": (LAYERS, 2, 5, HEADS, WIDTH // HEADS),
    "shallow": (5, WIDTH),
    "empty": (LAYERS, 2, 0, HEADS, WIDTH // HEADS),
}
TENSORS = "adapter_model.safetensors"


def _prompt(kind: str, *, head: bool = True) -> prompts.Prompt:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    return prompts.Prompt(
        rng.normal(size=SHAPES[kind]).astype(np.float32),
        {"kernel": kernel, "bias": bias} if head else {},
    )


def _info(prompt: prompts.Prompt, **changes) -> prompt_folders.PromptInfo:
    info = prompt_folders.PromptInfo(
        task="cb",
        backbone="random:bert-tiny",
        fingerprint="abc",
        kind=prompt.kind,
        method="panda",
        recipe="paper",
        source="mrpc",
        seed=7,
        data_fingerprint="d",
        scores={"accuracy": 0.5},
        labels=["a", "b", "c"] if prompt.head else [],
        versions={"jax": "0.10.2"},
    )
    return dataclasses.replace(info, **changes)


def _save(folder: pathlib.Path, kind: str = "deep", **changes) -> pathlib.Path:
    prompt = _prompt(kind)
    prompt_folders.save_prompt(folder, prompt, _info(prompt, **changes))
    return folder


def _assert_equal(got: prompts.Prompt, expected: prompts.Prompt) -> None:
    assert set(got.head) == set(expected.head)
    for a, b in [
        (got.vectors, expected.vectors),
        *((got.head[k], expected.head[k]) for k in expected.head),
    ]:
        assert isinstance(a, np.ndarray)
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, np.asarray(b))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_round_trip(tmp_path, kind, head):
    prompt = _prompt(kind, head=head)
    device = prompts.Prompt(
        jnp.asarray(prompt.vectors),
        {k: jnp.asarray(v) for k, v in prompt.head.items()},
    )
    saved = prompt_folders.save_prompt(tmp_path / "p", device, _info(prompt))
    loaded = prompt_folders.load_prompt(tmp_path / "p", fingerprint="abc")
    for stored in (saved, loaded):
        _assert_equal(stored.prompt, prompt)
        assert stored.info == _info(prompt)
        assert stored.path == tmp_path / "p"
    assert (tmp_path / "p/adapter_config.json").exists() == (kind != "empty")
    hashes = {prompt_folders.content_hash(p) for p in (device, loaded.prompt)}
    assert len(hashes) == 1


@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("layers", [2, 3])
def test_deep_prompts_of_text_to_text_backbones(tmp_path, layers, length):
    vectors = np.random.default_rng(0).normal(size=(layers, 2, length, 4, 6))
    prompt = prompts.Prompt(vectors.astype(np.float32), {})
    prompt_folders.save_prompt(tmp_path / "p", prompt, _info(prompt))
    _assert_equal(prompt_folders.load_prompt(tmp_path / "p").prompt, prompt)


def test_content_hash_sees_every_part():
    prompt = _prompt("deep")
    head = prompt.head
    changed = [
        prompt,
        dataclasses.replace(prompt, vectors=-prompt.vectors),
        dataclasses.replace(prompt, vectors=prompt.vectors[:, :, :, ::-1]),
        dataclasses.replace(prompt, head=head | {"bias": head["bias"] + 1}),
        dataclasses.replace(prompt, head={}),
    ]
    assert len(set(map(prompt_folders.content_hash, changed))) == len(changed)


# --- PEFT reads what we write ---


def _bert() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    config = torch_bert.config(num_labels=CLASSES)
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_peft_loads_what_we_store(tmp_path, kind):
    prompt = _prompt(kind)
    _save(tmp_path / "p", kind)
    model = peft.PeftModel.from_pretrained(_bert(), str(tmp_path / "p")).eval()
    assert model.peft_config["default"].num_virtual_tokens == 5
    classifier = model.base_model.classifier.modules_to_save["default"]
    np.testing.assert_array_equal(
        classifier.weight.detach().numpy(), prompt.head["kernel"].T
    )
    np.testing.assert_array_equal(
        classifier.bias.detach().numpy(), prompt.head["bias"]
    )
    if kind == "shallow":
        given = model.get_prompt(batch_size=1)[0].detach().numpy()
        np.testing.assert_array_equal(given, prompt.vectors)
    else:
        for layer, (keys, values, *_) in enumerate(model.get_prompt(1)):
            # PEFT gives [B, H, P, K].
            given = torch.stack([keys, values])[:, 0].detach().numpy()
            np.testing.assert_array_equal(
                np.swapaxes(given, 1, 2), prompt.vectors[layer]
            )


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_peft_computes_with_what_we_store(tmp_path, kind):
    prompt = _prompt(kind)
    _save(tmp_path / "p", kind)
    model = peft.PeftModel.from_pretrained(_bert(), str(tmp_path / "p")).eval()
    bert = _bert().eval().bert
    tokens = torch.randint(1, 50, (1, 7))
    mask = torch.ones((1, 5 + 7))
    if kind == "deep":
        cache = torch_bert.cache_of(torch.tensor(prompt.vectors), 1)
        given = {"input_ids": tokens, **torch_bert.as_past(bert, cache)}
    else:
        words = bert.embeddings.word_embeddings(tokens)
        vectors = torch.tensor(prompt.vectors)[None]
        given = {"inputs_embeds": torch.cat([vectors, words], dim=1)}
    with torch.no_grad():
        pooled = bert(**given, attention_mask=mask).pooler_output.numpy()
        out = torch_bert.through_peft(
            model,
            peft_pairs.form(kind, "SEQ_CLS"),
            input_ids=tokens,
            attention_mask=mask[:, 5:],
        )
        plain = bert(tokens).pooler_output.numpy()
    expected, without = (
        x @ prompt.head["kernel"] + prompt.head["bias"] for x in (pooled, plain)
    )
    assert np.abs(expected - without).max() > 1e-2, "the prompt had no effect"
    if out is not None:
        got = out.logits.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["deep", "shallow"])
def test_names_and_shapes_are_those_that_peft_writes(tmp_path, kind):
    _save(tmp_path / "ours", kind)
    make = peft.PrefixTuningConfig if kind == "deep" else None
    make = make or peft.PromptTuningConfig
    config = make(
        task_type="SEQ_CLS", num_virtual_tokens=5, num_transformer_submodules=1
    )
    peft.get_peft_model(_bert(), config).save_pretrained(tmp_path / "peft")
    shapes = {
        name: {
            key: value.shape
            for key, value in safetensors.numpy.load_file(
                tmp_path / name / TENSORS
            ).items()
        }
        for name in ("ours", "peft")
    }
    assert shapes["ours"] == shapes["peft"]


# --- What is wrong is said, and nothing crashes ---


def _rewrite_json(path: pathlib.Path, **changes) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(value))


def _rewrite_tensors(path: pathlib.Path, **changes) -> None:
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file(tensors, path)


def _header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        _header(1 << 62, b"{}"),
        _header(2**64 - 1, b"{}"),
        _header(2, b"{}"),
        _header(4, b"[1] "),
        _header(9, b"not json!"),
        _header(200000, b"[" * 200000),
        _header(
            63,
            b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'
            + b" ",
        ),
        _header(
            64,
            b'{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}'
            + b"    1234",
        ),
    ],
)
def test_damaged_tensor_files(tmp_path, content):
    folder = _save(tmp_path / "p")
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(errors.UserError, match=str(folder)) as caught:
        prompt_folders.load_prompt(folder)
    assert TENSORS in str(caught.value) or "got the tensors []" in str(
        caught.value
    )


@pytest.mark.parametrize("length", [9, 1 << 62, 2**64 - 1])
def test_header_length_is_held_against_the_file_size(tmp_path, length):
    folder = _save(tmp_path / "p")
    (folder / TENSORS).write_bytes(_header(length, b"{}      "))
    with pytest.raises(
        errors.UserError, match=f"16 bytes cannot hold a header of {length}"
    ):
        prompt_folders.load_prompt(folder)


def test_every_truncation_is_an_error(tmp_path):
    folder = _save(tmp_path / "p")
    whole = (folder / TENSORS).read_bytes()
    for size in range(0, len(whole), 97):
        (folder / TENSORS).write_bytes(whole[:size])
        with pytest.raises(errors.UserError, match="is damaged"):
            prompt_folders.load_prompt(folder)


def test_a_flipped_bit_is_an_error(tmp_path):
    folder = _save(tmp_path / "p")
    whole = bytearray((folder / TENSORS).read_bytes())
    whole[-1] ^= 1
    (folder / TENSORS).write_bytes(whole)
    with pytest.raises(errors.UserError, match="tensors hash to"):
        prompt_folders.load_prompt(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"extra": np.zeros(1, np.float32)}, "got the tensors .*'extra'"),
        ({"prompt_embeddings": np.zeros((5, 9), np.float32)}, r"has shape \[5"),
        ({"prompt_embeddings": np.zeros((), np.float32)}, r"has shape \[\]"),
        ({"prompt_embeddings": np.zeros((5, 96))}, "float64, expected float32"),
        (
            {"prompt_embeddings": np.full((5, 96), np.nan, np.float32)},
            "NaN or infinite",
        ),
        (
            {"base_model.classifier.bias": np.zeros(2, np.float32)},
            r"classifier.weight' has shape \[3, 16\], expected \[2, 16\]",
        ),
        (
            {"base_model.classifier.bias": np.zeros((), np.float32)},
            r"classifier.bias' has shape",
        ),
    ],
)
def test_wrong_tensors(tmp_path, tensors, message):
    folder = _save(tmp_path / "p")
    _rewrite_tensors(folder / TENSORS, **tensors)
    with pytest.raises(errors.UserError, match=message):
        prompt_folders.load_prompt(folder)


def test_half_a_head(tmp_path):
    folder = _save(tmp_path / "p")
    tensors = safetensors.numpy.load_file(folder / TENSORS)
    del tensors["base_model.classifier.bias"]
    safetensors.numpy.save_file(tensors, folder / TENSORS)
    with pytest.raises(errors.UserError, match="expected .*classifier.bias"):
        prompt_folders.load_prompt(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("panda.json", {"format_version": 2}, "format_version is 2, expected"),
        ("panda.json", {"format_version": None}, "format_version is None"),
        ("panda.json", {"task": 3}, "task is 3, expected str"),
        ("panda.json", {"backbone": 3}, "backbone is 3, expected str . None"),
        ("panda.json", {"backbone": None}, "'abc' and backbone None, expected"),
        ("panda.json", {"fingerprint": 3}, "fingerprint is 3, expected str"),
        ("panda.json", {"scores": {"a": "b"}}, "expected dict.str, float"),
        ("panda.json", {"labels": "abc"}, "expected list.str"),
        ("panda.json", {"labels": ["a", "b"]}, "3 outputs for the labels"),
        ("panda.json", {"kind": "wide"}, "kind 'wide', expected"),
        ("panda.json", {"kind": "shallow"}, "and kind 'shallow', expected"),
        ("panda.json", {"seed": True}, "seed is True, expected int"),
        ("panda.json", {"recipe": 1}, "recipe is 1, expected str . None"),
        ("panda.json", {"task_type": "LM"}, "task_type is 'LM', expected null"),
        ("panda.json", {"prompt_shape": None}, "prompt_shape is None"),
        ("panda.json", {"prompt_shape": [1, 2, 3]}, "prompt_shape is"),
        ("panda.json", {"prompt_shape": [3, 2, -5, 4, 4]}, "prompt_shape is"),
        ("panda.json", {"prompt_shape": [3, 2, 6, 4, 4]}, "describes a prompt"),
        ("panda.json", {"content_hash": "0"}, "tensors hash to"),
        ("adapter_config.json", {"peft_type": "LORA"}, "peft_type is 'LORA'"),
        ("adapter_config.json", {"num_layers": None}, "num_layers is None"),
        ("adapter_config.json", {"token_dim": 15}, "no multiple of the 4"),
    ],
)
def test_wrong_json(tmp_path, file, changes, message):
    folder = _save(tmp_path / "p")
    _rewrite_json(folder / file, **changes)
    with pytest.raises(errors.UserError, match=message) as caught:
        prompt_folders.load_prompt(folder)
    assert str(folder) in str(caught.value)


# What version 1 has always had; of the rest None is said as well.
KEYS = {
    "format_version": "format_version is None",
    "task": "task is None, expected str",
    "backbone": "backbone None, expected both",
    "kind": "kind is None, expected str",
    "method": "method is None, expected str",
    "seed": "seed is None, expected int",
    "scores": "scores is None, expected dict",
    "labels": "labels is None, expected list",
    "versions": "versions is None, expected dict",
    "prompt_shape": "prompt_shape is ",
    "content_hash": "tensors hash to .*panda.json says None",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_description_without_what_it_must_say(tmp_path, key):
    """Above all the hash: without it nobody sees that tensors changed."""
    folder = _save(tmp_path / "p")
    value = json.loads((folder / "panda.json").read_text())
    for missing in ({}, {key: None}):
        rest = {k: x for k, x in value.items() if k != key} | missing
        (folder / "panda.json").write_text(json.dumps(rest))
        with pytest.raises(errors.UserError, match=KEYS[key]) as caught:
            prompt_folders.load_prompt(folder)
        assert str(folder) in str(caught.value)
    # A fingerprint may be missing, and then the prompt is bound to nothing.
    others = value.keys() - KEYS.keys() - {"fingerprint"}
    rest = {k: x for k, x in value.items() if k not in others}
    (folder / "panda.json").write_text(json.dumps(rest))
    info = prompt_folders.load_prompt(folder).info
    assert {getattr(info, name) for name in others} == {None}


@pytest.mark.parametrize("hashed", ["", 0, [], True])
def test_a_hash_that_is_none(tmp_path, hashed):
    folder = _save(tmp_path / "p")
    _rewrite_json(folder / "panda.json", content_hash=hashed)
    with pytest.raises(errors.UserError, match="tensors hash to"):
        prompt_folders.load_prompt(folder)


@pytest.mark.parametrize("name", ["panda.json", "adapter_config.json", TENSORS])
def test_missing_and_linked_files(tmp_path, name):
    folder = _save(tmp_path / "p")
    (folder / name).rename(tmp_path / "elsewhere")
    with pytest.raises(errors.UserError, match=f"{name} is missing"):
        prompt_folders.load_prompt(folder)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.UserError, match="link to outside"):
        prompt_folders.load_prompt(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(errors.UserError, match="none' does not exist"):
        prompt_folders.load_prompt(tmp_path / "none")
    with pytest.raises(errors.UserError, match="holds no prompt"):
        prompt_folders.load_prompt(tmp_path)


def test_another_backbone(tmp_path):
    folder = _save(tmp_path / "p")
    message = "'random:bert-tiny'.*'minilm-l6'.*load .* or train"
    with pytest.raises(errors.UserError, match=message):
        prompt_folders.load_prompt(
            folder, fingerprint="other", backbone="minilm-l6"
        )


@pytest.mark.parametrize("named", [None, "bert-base-uncased"])
def test_a_prompt_that_is_bound_to_no_backbone(tmp_path, named):
    folder = _save(tmp_path / "p", backbone=named, fingerprint=None)
    info = prompt_folders.load_prompt(folder).info
    assert (info.backbone, info.fingerprint) == (named, None)
    said = "" if named is None else r" \(its file names 'bert-base-uncased'\)"
    message = f"'cb' is not bound to a backbone{said}:.* --backbone=DIR, the"
    with pytest.raises(errors.UserError, match=message) as caught:
        prompt_folders.load_prompt(folder, fingerprint="abc", backbone=named)
    assert str(folder) in str(caught.value)
    with pytest.raises(errors.UserError, match=message):
        prompt_folders.bound_backbone(info)
    assert (
        prompt_folders.bound_backbone(_info(_prompt("deep")))
        == "random:bert-tiny"
    )


def test_a_diverged_prompt_is_not_stored(tmp_path):
    prompt = _prompt("deep")
    prompt.head["bias"][0] = np.inf
    with pytest.raises(errors.UserError, match=r"in bias.*diverged"):
        prompt_folders.save_prompt(tmp_path / "p", prompt, _info(prompt))
    prompt = _prompt("deep")
    with pytest.raises(errors.UserError, match=r"in accuracy.*diverged"):
        prompt_folders.save_prompt(
            tmp_path / "p", prompt, _info(prompt, scores={"accuracy": np.nan})
        )
    with pytest.raises(ValueError, match="info.kind"):
        prompt_folders.save_prompt(
            tmp_path / "p", prompt, _info(prompt, kind="shallow")
        )
    assert not list(tmp_path.iterdir())


def test_saving_replaces_the_whole_folder(tmp_path):
    _save(tmp_path / "p", "deep")
    _save(tmp_path / "p", "empty")
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {"panda.json", TENSORS, ownership.LISTING}
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


# --- The bank ---


def test_bank(tmp_path):
    _save(tmp_path / "b", task="rte")
    _save(tmp_path / "a" / "prompt", "shallow", task="mrpc")
    _save(tmp_path / ".hidden", task="cb")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "scores.csv").write_text("")
    bank = prompt_folders.PromptBank(tmp_path)
    assert bank.names == ["a", "b"]
    assert len(bank) == 2
    assert [stored.info.task for stored in bank] == ["mrpc", "rte"]
    assert bank["a"] is bank["mrpc"]
    assert bank["a"].path == tmp_path / "a" / "prompt"
    assert prompt_folders.load_prompt(tmp_path / "a").info.task == "mrpc"
    with pytest.raises(errors.UserError, match="Unknown prompt 'c'"):
        bank["c"]


def test_bank_in_memory():
    stored = prompt_folders.StoredPrompt(
        _prompt("deep"), _info(_prompt("deep"))
    )
    bank = prompt_folders.PromptBank.of({"z": stored, "y": stored})
    assert bank.names == ["y", "z"]
    assert dict(bank.items()) == {"y": stored, "z": stored}
    with pytest.raises(errors.UserError, match="say which of y, z"):
        bank["cb"]


def test_bank_errors(tmp_path):
    with pytest.raises(errors.UserError, match="does not exist"):
        prompt_folders.PromptBank(tmp_path / "none")
    with pytest.raises(errors.UserError, match="expected one folder a prompt"):
        prompt_folders.PromptBank(tmp_path)
    _save(tmp_path / "good")
    (_save(tmp_path / "bad") / TENSORS).write_bytes(b"abc")
    with pytest.raises(errors.UserError, match="is one itself"):
        prompt_folders.PromptBank(tmp_path / "good")
    bank = prompt_folders.PromptBank(tmp_path)
    assert bank["good"].info.task == "cb"
    with pytest.raises(errors.UserError, match=str(tmp_path / "bad")):
        list(bank)


def test_loads_neither_tensorflow_nor_torch(tmp_path):
    _save(tmp_path / "p")
    code = (
        "import sys\n"
        "from panda_jax.store import prompt_folders\n"
        "prompt_folders.load_prompt(sys.argv[1])\n"
        "bad = {m.split('.')[0] for m in sys.modules}\n"
        "bad &= {'tensorflow', 'seqio', 'torch', 'peft', 'transformers'}\n"
        "assert not bad, bad\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], check=True
    )
