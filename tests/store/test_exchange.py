"""Prompts from .npy, PromptHub and PANDA files, and what is refused."""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
import sys
import urllib.parse

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import torch_bert
import transformers
import yaml
from markdown_it import MarkdownIt
from peft import PeftModel
from torch_bert import HEADS, LAYERS, WIDTH

from panda_jax import cli, errors, prompts
from panda_jax.api import scoring
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.interop import hf, npy, peft_pairs
from panda_jax.io.ownership import LISTING
from panda_jax.models import bert
from panda_jax.models.t5 import T5Config
from panda_jax.models.trees import content_hash
from panda_jax.prompts import Prompt
from panda_jax.store import cards, exchange, prompt_folders
from panda_jax.store.backbones import Backbone
from panda_jax.training import evaluation
from panda_jax.transfer import similarity

RELEASED = pathlib.Path(__file__).parents[3] / "shared/data/prompts"
RELEASED_TASKS = ("mrpc", "rte", "sst2")


def _text_to_text(config: T5Config) -> Backbone:
    """Of these sizes; no reader of a shallow prompt looks at the weights."""
    return Backbone(
        id="random:some-t5",
        config=config,
        params={},
        tokenizer=Tokenizer.builtin(),
        fingerprint="f" * 16,
    )


@pytest.fixture(scope="module")
def t5_base() -> Backbone:
    return _text_to_text(T5Config(width=768))


@pytest.fixture(scope="module")
def small_t5() -> Backbone:
    return _text_to_text(T5Config(width=16, layers=2, decoder_layers=3))


def _vectors(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype(np.float32)


# --- .npy ---


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_npy_of_two_bytes_a_number(tmp_path, dtype):
    """NumPy writes bfloat16 as two bytes of no name."""
    vectors = _vectors(5, 16).astype(dtype)
    np.save(tmp_path / "mrpc.npy", vectors)
    found = npy.read(tmp_path / "mrpc.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


@pytest.mark.parametrize("fortran", [False, True])
def test_npy_both_ways(tmp_path, small_t5, fortran):
    vectors = _vectors(5, 16)
    path = tmp_path / "mrpc.npy"
    np.save(path, np.asfortranarray(vectors) if fortran else vectors)
    stored = exchange.import_prompt("npy", path, backbone=small_t5)
    assert stored.prompt.vectors.tobytes() == vectors.tobytes()
    assert stored.prompt.head == {}
    assert stored.info == prompt_folders.PromptInfo(
        task="mrpc",
        backbone="random:some-t5",
        fingerprint="f" * 16,
        kind="shallow",
        method="import-npy",
        tokenizer_fingerprint=small_t5.tokenizer.identity,
    )
    prompt_folders.save_prompt(tmp_path / "p", stored.prompt, stored.info)
    loaded = prompt_folders.load_prompt(tmp_path / "p")
    written = exchange.export_prompt("npy", loaded, tmp_path / "out")
    assert written == tmp_path / "out" / "mrpc.npy"
    assert np.load(written).tobytes() == vectors.tobytes()
    if not fortran:
        assert written.read_bytes() == path.read_bytes()


@pytest.fixture(params=["released", "written"])
def prompt_files(request, tmp_path) -> pathlib.Path:
    """A folder of three prompts [100, 768]: the released ones, or made up."""
    if request.param == "released":
        if not RELEASED.is_dir():
            pytest.skip("needs the development data")
        return RELEASED
    shared = _vectors(100, 768)
    for seed, task in enumerate(RELEASED_TASKS, 1):
        own = np.random.default_rng(seed).normal(size=shared.shape)
        vectors = (shared + own).astype(np.float32)
        # Numbers that only a copy bit for bit keeps.
        vectors[0, :4] = [-0.0, 1e-45, -1e-38, 1 + 2**-23]
        np.save(tmp_path / f"{task}.npy", vectors)
    return tmp_path


@pytest.mark.parametrize("bound", [True, False])
def test_the_three_released_prompts(tmp_path, t5_base, prompt_files, bound):
    backbone = t5_base if bound else None
    for task in RELEASED_TASKS:
        path = prompt_files / f"{task}.npy"
        stored = exchange.import_prompt("npy", path, backbone=backbone)
        assert stored.info.task == task
        prompt_folders.save_prompt(
            tmp_path / "bank" / task, stored.prompt, stored.info
        )
    bank = prompt_folders.PromptBank(tmp_path / "bank")
    for task in RELEASED_TASKS:
        vectors = bank[task].prompt.vectors
        path = prompt_files / f"{task}.npy"
        assert vectors.shape == (100, 768)
        assert vectors.tobytes() == np.load(path).tobytes()
        written = exchange.export_prompt("npy", bank[task], tmp_path / "out")
        assert written.read_bytes() == path.read_bytes()
    stack = np.stack([bank[task].prompt.vectors for task in RELEASED_TASKS])
    scores = np.asarray(similarity.e_avg(stack, stack))
    mean = stack.astype(np.float64).mean(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, mean @ mean.T, atol=1e-5)
    if prompt_files == RELEASED:
        expected = {(0, 1): 0.57, (1, 2): 0.52, (0, 2): 0.50}
        for pair, score in expected.items():
            assert scores[pair] == pytest.approx(score, abs=0.006)


def test_another_t5_than_the_prompts(tmp_path, t5_base, prompt_files):
    path = prompt_files / "rte.npy"
    # Other T5s have other widths, and another width-768 T5 other weights.
    for width in (512, 1024):
        other = _text_to_text(T5Config(width=width))
        message = f"has width 768, backbone 'random:some-t5' has {width}"
        with pytest.raises(errors.UserError, match=message):
            exchange.import_prompt("npy", path, backbone=other)
    stored = exchange.import_prompt("npy", path, backbone=t5_base)
    prompt_folders.save_prompt(tmp_path / "p", stored.prompt, stored.info)
    other = dataclasses.replace(t5_base, fingerprint="e" * 16)
    with pytest.raises(errors.UserError, match=r"weights f{16}\), got .*eee"):
        prompt_folders.load_prompt(
            tmp_path / "p", fingerprint=other.fingerprint
        )
    with pytest.raises(errors.UserError, match=r"weights f{16}\), got .*eee"):
        exchange.import_prompt("peft", tmp_path / "p", backbone=other)
    with pytest.raises(errors.UserError, match=r"weights f{16}\), got .*eee"):
        scoring.check_prompt(other, "rte", stored)
    scoring.check_prompt(t5_base, "rte", stored)


# --- Without a backbone ---

UNBOUND = "'mrpc' is not bound to a backbone.*again with --backbone=DIR"


def _unbound(folder: pathlib.Path, format: str) -> prompt_folders.StoredPrompt:
    """A prompt [5, 16] for `mrpc`, imported without a backbone and stored."""
    folder.mkdir()
    path = folder / "mrpc"
    if format == "npy":
        npy.write(path, _vectors(5, 16))
    else:
        torch.save(torch.tensor(_vectors(5, 16)), path)
    stored = exchange.import_prompt(format, path)
    prompt_folders.save_prompt(folder / "stored", stored.prompt, stored.info)
    return prompt_folders.load_prompt(folder / "stored")


@pytest.mark.parametrize("format", ["npy", "prompthub"])
def test_a_prompt_that_is_bound_to_no_backbone(tmp_path, small_t5, format):
    stored = _unbound(tmp_path / "p", format)
    assert stored.info == prompt_folders.PromptInfo(
        task="mrpc",
        backbone=None,
        fingerprint=None,
        kind="shallow",
        method=f"import-{format}",
    )
    assert stored.prompt.vectors.tobytes() == _vectors(5, 16).tobytes()
    # It is exported,
    written = exchange.export_prompt("npy", stored, tmp_path / "npy")
    assert np.load(written).tobytes() == _vectors(5, 16).tobytes()
    written = exchange.export_prompt("peft", stored, tmp_path / "peft")
    assert exchange.import_prompt("peft", written).info == stored.info
    (written / prompt_folders.INFO).unlink()  # as others write it
    again = exchange.import_prompt("peft", written, task="mrpc")
    assert again.info.fingerprint is None
    assert again.info.task_type == "SEQ_2_SEQ_LM"
    assert again.prompt.vectors.tobytes() == _vectors(5, 16).tobytes()
    assert exchange.import_prompt("peft", stored.path or "").info == stored.info
    # and not used.
    for use in (
        lambda: prompt_folders.check_backbone(stored.info, "e" * 16, "b"),
        lambda: prompt_folders.load_prompt(
            stored.path or "", fingerprint="e" * 16
        ),
        lambda: scoring.check_prompt(small_t5, "source", stored),
        lambda: prompt_folders.bound_backbone(stored.info),
        lambda: evaluation.evaluate(stored, backbone=small_t5, task="rte"),
    ):
        with pytest.raises(errors.UserError, match=UNBOUND):
            use()


@pytest.mark.parametrize("format", ["npy", "prompthub"])
def test_a_folder_of_ours_is_bound_by_importing_it_again(
    tmp_path, small_t5, tiny, format
):
    folder = _unbound(tmp_path / "p", format).path or tmp_path
    bound = exchange.import_prompt("peft", folder, backbone=small_t5)
    path = tmp_path / "p" / "mrpc"
    direct = exchange.import_prompt(format, path, backbone=small_t5)
    assert bound.info == direct.info
    assert bound.info.fingerprint == small_t5.fingerprint
    scoring.check_prompt(small_t5, "source", bound)
    with pytest.raises(errors.UserError, match="has width 16, .* has 128"):
        exchange.import_prompt("peft", folder, backbone=tiny)
    narrow = dataclasses.replace(
        tiny, config=dataclasses.replace(tiny.config, width=16)
    )
    bound = exchange.import_prompt("peft", folder, backbone=narrow)
    # As an encoder's prompt it is no text-to-text one.
    assert bound.info.task_type == "FEATURE_EXTRACTION"


def test_panda_needs_a_backbone(tmp_path, released):
    path = _checkpoint(tmp_path / "p", released)
    with pytest.raises(errors.UserError, match=r"give it \(--backbone=DIR\)"):
        exchange.import_prompt("panda", path)


def _header(text: str, version: bytes = b"\x01\x00") -> bytes:
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + size + text.encode()


def _described(shape: str, kind: str = "'<f4'") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"
    return _header(text)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (b"PK\x03\x04abcdefgh", "cannot be read"),
        (_header("{}"), "cannot be read"),
        (_header("(" * 9000), "cannot be read"),
        (_header("__import__('os').system('x')"), "cannot be read"),
        (_header("{}", b"\x03\x00"), r"version is \(3, 0\), expected"),
        (_header("{}" + " " * 99999, b"\x02\x00"), "cannot be read"),
        (_described("(1, 4)") + bytes(15), "15 bytes of data for"),
        (_described("(1, 4)") + bytes(17), "17 bytes of data for"),
        (_described("(1 << 40, 4)"), "cannot be read"),
        (_described(f"({1 << 60}, 4)") + bytes(16), "16 bytes of data for"),
        (_described("(0, 4)"), r"shape \[0, 4\], expected"),
        (_described("(-1, -4)") + bytes(16), r"shape \[-1, -4\], expected"),
        (_described("(4,)") + bytes(16), r"shape \[4\], expected"),
        (_described("()") + bytes(4), r"shape \[\], expected"),
        (_described("(1, 4)", "'<f8'") + bytes(32), "float64, expected float"),
        (_described("(1, 4)", "'>f4'") + bytes(16), ">f4, expected float32"),
        (_described("(1, 4)", "'|O'") + b"cos\nsystem\n", "object, expected"),
        (_described("(1, 4)", "[('a', '<f4')]") + bytes(16), "expected float"),
        (_described("(1, 4)") + b"\xff" * 16, "NaN or infinite"),
    ],
)
def test_other_npy_files(tmp_path, small_t5, content, match):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("npy", path, backbone=small_t5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_npy_file_is_not_executed(tmp_path, small_t5):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    path = tmp_path / "a.npy"
    np.save(path, np.array([[Payload()]], object), allow_pickle=True)
    with pytest.raises(errors.UserError, match="object, expected float32"):
        exchange.import_prompt("npy", path, backbone=small_t5)
    assert not (tmp_path / "executed").exists()


def test_writing_keeps_bits_and_order(tmp_path):
    vectors = _vectors(3, 4).T
    npy.write(tmp_path / "a.npy", vectors)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), vectors)
    np.testing.assert_array_equal(npy.read(tmp_path / "a.npy"), vectors)


# --- PromptHub and OpenPrompt ---


def _prompthub(vectors: torch.Tensor) -> dict:
    """The forms that were released, by the code that wrote them."""
    moments = {"exp_avg": torch.randn_like(vectors)}
    return {
        "bare": vectors,
        "parameter": torch.nn.Parameter(vectors),
        "checkpoint": {
            "model": vectors,
            "optimizer_name": "adamw",
            "optimizer": {"state": {0: moments}, "param_groups": []},
            "trained_epoch": 69,
        },
        "best": {"best_acc": torch.tensor(0.5), "best_prompt": vectors},
        "hub": collections.OrderedDict(
            [("prompt_model.template.soft_embeds", vectors)]
        ),
        "openprompt": {
            "template.soft_embeds": vectors,
            "template.raw_embedding.weight": torch.randn(50, 16),
            "plm.shared.weight": torch.randn(50, 16),
        },
        "whole": {
            "model": {
                "encoder.bert.embeddings.prompt_embeddings.weight": vectors,
                "encoder.bert.embeddings.word_embeddings.weight": torch.ones(
                    9, 16
                ),
            }
        },
    }


@pytest.mark.parametrize("form", _prompthub(torch.ones(1)))
def test_prompthub(tmp_path, small_t5, form):
    vectors = _vectors(5, 16)
    folder = tmp_path / "IMDBPromptT5"
    folder.mkdir()
    path = folder / "task_prompt"
    torch.save(_prompthub(torch.tensor(vectors))[form], path)
    stored = exchange.import_prompt("prompthub", path, backbone=small_t5)
    assert stored.prompt.vectors.tobytes() == vectors.tobytes()
    assert stored.info.task == "IMDBPromptT5"
    assert stored.info.task_type is None


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.ones(16), "0 of its 1 tensors can be the prompt"),
        (torch.ones(2, 3, 16), r"expected one.*got {'': \[2, 3, 16\]}"),
        (
            {"a": torch.ones(5, 16), "b": torch.ones(5, 16)},
            r"0 of its 2 tensors.*got {'a': \[5, 16\], 'b': \[5, 16\]}",
        ),
        (
            {
                "a.soft_embeds": torch.ones(5, 16),
                "soft_prompt": torch.ones(5, 16),
            },
            "2 of its 2 tensors can be the prompt, expected one",
        ),
        (
            {"x_soft_embeds": torch.ones(5, 16), "soft": torch.ones(5, 16)},
            "0 of its 2",
        ),
        ({"optimizer": {"a": torch.ones(5, 16)}}, "0 of its 1 tensors"),
        (torch.ones(5, 16).long(), "type int64, expected float32"),
        (torch.full((5, 16), torch.inf), "NaN or infinite"),
        (torch.ones(5, 17), "has width 17, backbone 'random:some-t5' has 16"),
    ],
)
def test_other_torch_files(tmp_path, small_t5, value, match):
    path = tmp_path / "a.pt"
    torch.save(value, path)
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("prompthub", path, backbone=small_t5)
    assert str(path) in str(caught.value)


def test_prompthub_of_bert_has_no_head(tmp_path, tiny):
    vectors = _vectors(5, 128)
    torch.save(torch.tensor(vectors).half(), tmp_path / "imdb.pt")
    stored = exchange.import_prompt(
        "prompthub", tmp_path / "imdb.pt", backbone=tiny
    )
    np.testing.assert_array_equal(
        stored.prompt.vectors, vectors.astype(np.float16)
    )
    assert (stored.info.task, stored.info.task_type) == (
        "imdb",
        "FEATURE_EXTRACTION",
    )


# --- The released PANDA code ---

P = 5


class PTuningV2(torch.nn.Module):
    """As THUDM/P-tuning-v2's BertPrefixFor...: what the release trains."""

    def __init__(self, outputs: int, head: str, hidden: int = 0):
        super().__init__()
        self.bert = transformers.BertModel(torch_bert.config())
        self.prefix_encoder = torch.nn.Module()
        columns = LAYERS * 2 * WIDTH
        self.prefix_encoder.embedding = torch.nn.Embedding(
            P, WIDTH if hidden else columns
        )
        self.prefix_encoder.trans = torch.nn.Sequential()
        if hidden:  # `prefix_projection`
            self.prefix_encoder.trans.extend(
                [
                    torch.nn.Linear(WIDTH, hidden),
                    torch.nn.Tanh(),
                    torch.nn.Linear(hidden, columns),
                ]
            )
        self.head = head
        setattr(self, head, torch.nn.Linear(WIDTH, outputs))

    def forward(self, tokens, segments):
        batch = len(tokens)
        rows = self.prefix_encoder.embedding(torch.arange(P))
        rows = self.prefix_encoder.trans(rows)
        rows = rows[None].expand(batch, -1, -1)
        rows = rows.view(batch, P, LAYERS * 2, HEADS, WIDTH // HEADS)
        pairs = rows.permute([2, 0, 3, 1, 4]).split(2)
        mask = torch.cat([torch.ones(batch, P), (tokens != 0).float()], 1)
        out = self.bert(
            tokens,
            attention_mask=mask,
            token_type_ids=segments,
            **torch_bert.as_past(self.bert, transformers.DynamicCache(pairs)),
        )
        per_token = self.head == "qa_outputs"
        read = out.last_hidden_state if per_token else out.pooler_output
        return getattr(self, self.head)(read)


@pytest.fixture(scope="module")
def released() -> PTuningV2:
    torch.manual_seed(0)
    return PTuningV2(3, "classifier").eval()


@pytest.fixture(scope="module")
def small_bert(released, tmp_path_factory) -> Backbone:
    return _of(released, tmp_path_factory.mktemp("bert"))


def _of(model: PTuningV2, folder: pathlib.Path) -> Backbone:
    model.bert.save_pretrained(folder)
    params, config = hf.load_bert(folder)
    return Backbone(
        id="their-bert",
        config=config,
        params=params,
        tokenizer=Tokenizer.builtin(),
        fingerprint=content_hash(params),
    )


def _checkpoint(folder: pathlib.Path, model: PTuningV2, **changes):
    folder.mkdir(exist_ok=True)
    state = {**model.state_dict(), **changes}
    state = {name: value for name, value in state.items() if value is not None}
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize(
    ("head", "hidden"),
    [("classifier", 0), ("qa_outputs", 0), ("classifier", 9)],
)
def test_panda(tmp_path, head, hidden):
    torch.manual_seed(1)
    model = PTuningV2(2, head, hidden).eval()
    backbone = _of(model, tmp_path / "bert")
    # What old versions of transformers stored beside.
    positions = {"bert.embeddings.position_ids": torch.arange(64)[None]}
    path = _checkpoint(tmp_path / "rte-bert", model, **positions)
    stored = exchange.import_prompt("panda", path, backbone=backbone)
    assert stored.prompt.vectors.shape == (
        LAYERS,
        2,
        P,
        HEADS,
        WIDTH // HEADS,
    )
    assert (stored.info.task, stored.info.method) == (
        "rte-bert",
        "import-panda",
    )
    tokens = torch.randint(4, 50, (3, 8))
    tokens[1, 5:] = 0
    segments = (torch.arange(8) > 3).long().expand(3, 8)
    with torch.no_grad():
        theirs = model(tokens, segments).numpy()
    ours, _ = bert.apply(
        backbone.params,
        backbone.config,
        tokens.numpy(),
        segments.numpy(),
        stored.prompt,
        per_token=head == "qa_outputs",
    )
    real = (tokens != 0).numpy() if head == "qa_outputs" else slice(None)
    assert theirs.std() > 0.05
    np.testing.assert_allclose(
        np.asarray(ours)[real], theirs[real], atol=1e-4, rtol=0
    )
    again = exchange.import_prompt(
        "panda", path.parent, backbone=backbone, task="rte"
    )
    assert again.info.task == "rte"
    np.testing.assert_array_equal(again.prompt.vectors, stored.prompt.vectors)


def test_panda_without_its_encoder(tmp_path, released, small_bert):
    encoder = {
        name: None for name in released.state_dict() if name[:5] == "bert."
    }
    path = _checkpoint(tmp_path / "p", released, **encoder)
    stored = exchange.import_prompt("panda", path, backbone=small_bert)
    rows = released.prefix_encoder.embedding.weight.detach().numpy()
    np.testing.assert_array_equal(
        stored.prompt.vectors,
        rows.reshape(P, LAYERS, 2, HEADS, -1).transpose(1, 2, 0, 3, 4),
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prefix_encoder.embedding.weight": None}, "got the tensors"),
        ({"classifier.bias": None}, "expected .*classifier.bias"),
        ({"prefix_encoder.trans.0.weight": torch.ones(1)}, "trans.2.bias"),
        (
            {
                "prefix_encoder.embedding.weight": torch.ones(P, WIDTH),
                "prefix_encoder.trans.0.weight": torch.ones(9, WIDTH),
                "prefix_encoder.trans.0.bias": torch.ones(9),
                "prefix_encoder.trans.2.weight": torch.ones(96, 8),
                "prefix_encoder.trans.2.bias": torch.ones(96),
            },
            r"trans.2.weight' has shape \[96, 8\], expected \[96, 9\]",
        ),
        ({"roberta.pooler.bias": torch.ones(1)}, "roberta.pooler.bias"),
        (
            {"prefix_encoder.embedding.weight": torch.ones(P, 64)},
            r"shape \[5, 64\], expected \[5, 96\]",
        ),
        ({"prefix_encoder.embedding.weight": torch.ones(())}, r"shape \[\]"),
        ({"classifier.weight": torch.ones(3, 8)}, r"expected \[3, 16\]"),
        ({"classifier.bias": torch.full((3,), torch.nan)}, "NaN or infinite"),
        (
            {"bert.encoder.layer.1.output.dense.bias": torch.ones(16)},
            "'bert.encoder.layer.1.output.dense.bias' differs from the back",
        ),
        (
            {"bert.embeddings.word_embeddings.weight": torch.ones(51, 16)},
            r"shape \[51, 16\], expected \[50, 16\]",
        ),
        (
            {"bert.encoder.layer.3.output.dense.bias": torch.ones(16)},
            "'bert.encoder.layer.3.output.dense.bias', the backbone has none",
        ),
    ],
)
def test_other_checkpoints(tmp_path, released, small_bert, changes, match):
    path = _checkpoint(tmp_path / "p", released, **changes)
    with pytest.raises(errors.UserError, match=match) as caught:
        exchange.import_prompt("panda", path, backbone=small_bert)
    assert str(path) in str(caught.value)


def test_panda_on_a_backbone_in_bfloat16(tmp_path, released, small_bert):
    path = _checkpoint(tmp_path / "p", released)
    short = dataclasses.replace(
        small_bert,
        params=jax.tree.map(
            lambda x: jax.numpy.asarray(x, "bfloat16"), small_bert.params
        ),
    )
    assert exchange.import_prompt("panda", path, backbone=short)


def test_panda_is_no_t5(tmp_path, released, small_t5):
    path = _checkpoint(tmp_path / "p", released)
    with pytest.raises(errors.UserError, match="is a text-to-text backbone"):
        exchange.import_prompt("panda", path, backbone=small_t5)


# --- The front ---


def _prompt(kind: str, *, head: bool = True) -> prompt_folders.StoredPrompt:
    shape = prompts.prompt_shape(kind, P, layers=2, width=128, heads=2)
    weights = {"kernel": _vectors(128, 3), "bias": _vectors(3)}
    info = prompt_folders.PromptInfo(
        task="cb",
        backbone="b",
        fingerprint="f",
        kind=kind,
        method="prompt",
        labels=["a", "b", "c"] if head else [],
    )
    return prompt_folders.StoredPrompt(
        Prompt(_vectors(*shape), weights if head else {}), info
    )


def test_unknown_formats_and_missing_files(tmp_path, tiny):
    with pytest.raises(errors.UserError, match="import format 'nyp'.*'npy'"):
        exchange.import_prompt("nyp", tmp_path, backbone=tiny)
    with pytest.raises(errors.UserError, match="export format 'panda'"):
        exchange.export_prompt("panda", _prompt("deep"), tmp_path)
    for name in exchange.IMPORTS:
        with pytest.raises(errors.UserError, match=r"none' does not exist"):
            exchange.import_prompt(name, tmp_path / "none", backbone=tiny)
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(errors.UserError, match="empty"):
            exchange.import_prompt(name, tmp_path / "empty", backbone=tiny)


def test_a_folder_of_ours_keeps_its_description(tmp_path, tiny):
    made = _prompt("deep")
    info = dataclasses.replace(
        made.info, fingerprint=tiny.fingerprint, seed=7, scores={"a": 0.5}
    )
    prompt_folders.save_prompt(tmp_path / "p", made.prompt, info)
    stored = exchange.import_prompt("peft", tmp_path / "p", backbone=tiny)
    assert stored.info == info
    assert exchange.import_prompt("peft", tmp_path / "p").info == info
    renamed = exchange.import_prompt(
        "peft", tmp_path / "p", backbone=tiny, task="mnli"
    )
    assert renamed.info == dataclasses.replace(info, task="mnli")
    with pytest.raises(errors.UserError, match="has 3 outputs, task 'rte' ne"):
        exchange.import_prompt("peft", tmp_path / "p", task="rte")
    prompt_folders.save_prompt(tmp_path / "q", made.prompt, made.info)
    with pytest.raises(errors.UserError, match=r"'b' \(weights f\), got"):
        exchange.import_prompt("peft", tmp_path / "q", backbone=tiny)


@pytest.mark.parametrize(
    ("kind", "sizes", "match"),
    [
        ("shallow", {"width": 64}, "has width 128, backbone .* has 64"),
        ("deep", {"layers": 3}, "has layers 2, backbone .* has 3"),
        ("deep", {"heads": 4}, "has heads 2, backbone .* has 4"),
        ("deep", {"width": 64}, "has head width 64, backbone .* has 32"),
    ],
)
def test_other_sizes(tmp_path, tiny, kind, sizes, match):
    stored = _prompt(kind, head=False)
    # Without a head it would be a text-to-text prompt.
    info = dataclasses.replace(stored.info, task_type="FEATURE_EXTRACTION")
    stored = dataclasses.replace(stored, info=info)
    exchange.export_prompt("peft", stored, tmp_path / "p")
    (tmp_path / "p" / prompt_folders.INFO).unlink()
    other = dataclasses.replace(
        tiny, config=dataclasses.replace(tiny.config, **sizes)
    )
    assert exchange.import_prompt("peft", tmp_path / "p", backbone=tiny)
    with pytest.raises(errors.UserError, match=match):
        exchange.import_prompt("peft", tmp_path / "p", backbone=other)


def test_the_task_must_have_as_many_outputs(tmp_path, tiny):
    exchange.export_prompt("peft", _prompt("deep"), tmp_path / "cb")
    (tmp_path / "cb" / prompt_folders.INFO).unlink()
    stored = exchange.import_prompt("peft", tmp_path / "cb", backbone=tiny)
    assert stored.info.task == "cb"
    for task in ("mnli", "unheard-of"):
        assert exchange.import_prompt(
            "peft", tmp_path / "cb", backbone=tiny, task=task
        )
    with pytest.raises(errors.UserError, match="has 3 outputs, task 'rte' ne"):
        exchange.import_prompt(
            "peft", tmp_path / "cb", backbone=tiny, task="rte"
        )


@pytest.mark.parametrize(
    ("stored", "match"),
    [
        (_prompt("shallow"), "has a head; a .npy file holds"),
        (_prompt("deep", head=False), r"shape \[2, 2, 5, 2, 64\]; a .npy"),
    ],
)
def test_what_npy_cannot_hold(tmp_path, stored, match):
    with pytest.raises(errors.UserError, match=match):
        exchange.export_prompt("npy", stored, tmp_path)
    assert not list(tmp_path.iterdir())


def test_exports_never_replace_other_files(tmp_path):
    stored = _prompt("deep")
    for _ in range(2):
        exchange.export_prompt("peft", stored, tmp_path / "p")
    (tmp_path / "p" / "notes.txt").write_text("mine")
    exchange.export_prompt("peft", stored, tmp_path / "p")
    with pytest.raises(errors.UserError, match="is a file: give a folder"):
        exchange.export_prompt("peft", stored, tmp_path / "p" / "notes.txt")
    assert (tmp_path / "p" / "notes.txt").read_text() == "mine"
    empty = dataclasses.replace(
        stored, prompt=Prompt(np.zeros((2, 2, 0, 2, 64), np.float32), {})
    )
    for name in exchange.EXPORTS:
        with pytest.raises(errors.UserError, match="there is no prompt to exp"):
            exchange.export_prompt(name, empty, tmp_path / "q")
    shallow = _prompt("shallow", head=False)
    odd = dataclasses.replace(shallow.info, task="../up")
    written = exchange.export_prompt(
        "npy", dataclasses.replace(shallow, info=odd), tmp_path / "n"
    )
    assert written == tmp_path / "n" / "prompt.npy"


# --- To share ---

ODD = "a|b `c` <i>_x_<i> ![y](z) é"
HOSTILE = "x|y\n---\n# h\n\n<b>`q`</b> ![i](http://e.x) \u202e*z* \\| \udcff"


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> str:
    """A Hugging Face folder of `tiny`, as transformers loads it."""
    folder = tmp_path_factory.mktemp("weights")
    hf.save(folder, tiny.params, tiny.config)
    tiny.tokenizer.save(folder)
    return str(folder)


def _trained(
    kind: str, tiny: Backbone, weights: str
) -> prompt_folders.StoredPrompt:
    stored = _prompt(kind)
    info = dataclasses.replace(
        stored.info,
        backbone=weights,
        fingerprint=tiny.fingerprint,
        method="panda",
        recipe="paper",
        source="mnli",
        seed=3,
        max_length=32,
        scores={"accuracy": 0.71, "f1_macro": 0.5},
    )
    return dataclasses.replace(stored, info=info)


def _blocks(card: str) -> list[str]:
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


def _rows(page: str) -> list[list[str]]:
    """The cells of a page's tables, as a reader sees them."""
    found: list[list[str]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    for before, token in itertools.pairwise(tokens):
        if token.type == "tr_open":
            found.append([])
        elif before.type in ("th_open", "td_open"):
            parts = token.children or []
            kinds = {part.type for part in parts}
            assert kinds <= {"text", "link_open", "link_close"}, kinds
            found[-1].append("".join(part.content for part in parts))
    return found


def test_a_bank_is_exported_to_share(
    tmp_path, tiny, weights, capsys, monkeypatch
):
    made = {
        "deep": _trained("deep", tiny, weights),
        ODD: _trained("shallow", tiny, weights),
    }
    for name, stored in made.items():
        folder = tmp_path / "bank" / name / "prompt"  # a run's folder
        prompt_folders.save_prompt(folder, stored.prompt, stored.info)
    out = tmp_path / "out"
    argv = ["export", "peft", str(tmp_path / "bank"), f"--out_dir={out}"]
    assert cli.main([*argv, "--base_model=some/bert"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    names = {path.name for path in out.iterdir()}
    assert names == {*made, cards.FILE, LISTING}
    assert prompt_folders.PromptBank(out).names == sorted(made)
    index = (out / cards.FILE).read_text()
    front, page = index.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "base_model": ["some/bert"],
        "tags": ["panda-jax", "prefix-tuning", "prompt-tuning", "cb"],
    }
    rows = _rows(page)
    assert [row[0] for row in rows[1:]] == sorted(made)
    for row in rows[1:]:
        assert row[1:5] == ["cb", "panda", "mnli", "3"]
        assert row[6] == "accuracy 0.71, f1_macro 0.5"
    for target in re.findall(r"\]\((.*?)\)", page):
        assert (out / urllib.parse.unquote(target)).is_file()
    for name, stored in made.items():
        monkeypatch.chdir(out / name)
        assert {path.name for path in (out / name).iterdir()} == {
            *prompt_folders.FILES,
            cards.FILE,
        }
        card = (out / name / cards.FILE).read_text()
        _assert_told(
            card, json.loads((out / name / prompt_folders.INFO).read_text())
        )
        ours, theirs, *without_peft = _blocks(card)
        assert len(without_peft) == (stored.info.kind == "deep")
        found: dict = {}
        exec(ours, found)
        assert found["prompt"].info == stored.info
        exec(theirs.replace("some/bert", weights), found)
        assert isinstance(found["model"], PeftModel)
        config = found["model"].active_peft_config
        assert config.num_virtual_tokens == stored.prompt.length
        assert found["model"].base_model.num_labels == 3
        for lines in without_peft:
            exec(lines.replace("some/bert", weights), found)
            _assert_answers(found["answer"], tiny, stored.prompt)


def _assert_answers(answer, backbone: Backbone, prompt: Prompt) -> None:
    """A card's lines give our logits."""
    tokens = np.array([[2, 9, 7, 3], [2, 5, 3, 0]])
    segments = np.array([[0, 0, 1, 1], [0, 1, 1, 0]])
    expected, _ = bert.apply(
        backbone.params, backbone.config, tokens, segments, prompt
    )
    with torch.no_grad():
        got = answer(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(tokens != 0).long(),
            token_type_ids=torch.tensor(segments),
        )
    assert np.ptp(expected, axis=0).max() > 1e-2
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4, rtol=0)


def _assert_told(card: str, about: dict) -> None:
    """A card's table says what `panda.json` says."""
    told = {row[0]: row[1] for row in _rows(card) if len(row) == 2}
    for key, value in about.items():
        if key in ("format_version", "scores", "task_type"):
            continue
        if key in ("backbone_folder", "own_task"):
            continue
        words = cards._FACTS[key]
        if value in (None, [], {}):
            assert words not in told
        elif key == "prompt_shape":
            assert told[words].split(" x ") == list(map(str, value))
        elif isinstance(value, list):
            assert told[words] == ", ".join(value)
        elif isinstance(value, dict):
            assert all(f"{k} {v}" in told[words] for k, v in value.items())
        else:
            assert told[words] == str(value)
    for metric, score in about["scores"].items():
        assert float(told[metric]) == score


def test_nothing_in_a_name_formats_a_card(tiny, weights):
    stored = _trained("deep", tiny, weights)
    for field in ("task", "backbone", "method", "source"):
        stored = dataclasses.replace(
            stored, info=dataclasses.replace(stored.info, **{field: HOSTILE})
        )
    info = dataclasses.replace(
        stored.info, labels=[HOSTILE] * 3, scores={HOSTILE: 1.0}
    )
    stored = dataclasses.replace(stored, info=info)
    shown = "x|y --- # h <b>`q`</b> ![i](http://e.x) *z* \\|"
    for page, count in (
        (cards.card(stored), 3),
        (cards.index({HOSTILE: info}), 1),
    ):
        _, front, body = page.split("---\n", 2)
        assert yaml.safe_load(front)["tags"][-1] == shown
        assert page.encode()
        rows = _rows(body)
        cells = [cell for row in rows for cell in row]
        assert shown in cells
        kinds = collections.Counter(
            token.type
            for token in MarkdownIt("commonmark").enable("table").parse(body)
        )
        assert kinds["table_open"] == count
        assert kinds["html_block"] == kinds["hr"] == 0
    for block in _blocks(cards.card(stored)):
        compile(block, "card", "exec")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "minilm-l6"}, "sentence-transformers/all-MiniLM-L6-v2"),
        ({"backbone": "random:bert-tiny"}, "weights are random"),
        ({"fingerprint": None}, "does not say which weights"),
        ({"method": "import-npy"}, "only what its file says is known"),
        ({"scores": {}}, "None is recorded."),
    ],
)
def test_a_card_says_what_is_not_known(tiny, weights, changes, said):
    stored = _trained("deep", tiny, weights)
    assert said not in cards.card(stored)
    info = dataclasses.replace(stored.info, **changes)
    assert said in cards.card(dataclasses.replace(stored, info=info))


@pytest.mark.parametrize(
    ("task_type", "said"),
    [
        ("QUESTION_ANS", "`start_logits[:, 5:]`"),
        ("TOKEN_CLS", "`logits[:, 5:]`"),
    ],
)
def test_a_card_says_where_the_logits_of_the_text_begin(
    tiny, weights, task_type, said
):
    """A deep prompt has no positions of its own (`_logits` of test_peft)."""
    for kind, expected in (("shallow", True), ("deep", False)):
        stored = _trained(kind, tiny, weights)
        info = dataclasses.replace(stored.info, task_type=task_type)
        card = cards.card(dataclasses.replace(stored, info=info))
        assert (said in card) == expected
        assert ("begin 5 positions early" in card) == expected


@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "QUESTION_ANS"])
def test_a_card_says_what_each_tried_pair_gives(tiny, weights, kind, task_type):
    stored = _trained(kind, tiny, weights)
    info = dataclasses.replace(stored.info, task_type=task_type)
    card = cards.card(dataclasses.replace(stored, info=info))
    heads, *rows = (row for row in _rows(card) if len(row) == 3)
    assert heads == ["transformers", "PEFT", "it gives"]
    said = {
        (ours, theirs): words
        for versions, others, words in rows
        for ours in versions.split(", ")
        for theirs in others.split(", ")
    }
    assert said == {
        (pair.transformers, pair.peft): pair.with_peft[
            f"{kind} {task_type}"
        ].words
        for pair in peft_pairs.pairs()
    }


@pytest.mark.parametrize("name", ["./bert", "/models/bert", "a/b/c", "a b"])
def test_a_base_model_is_a_name_on_the_hub(tmp_path, name):
    with pytest.raises(errors.UserError, match="as google/t5-v1_1-base"):
        exchange.export_prompt(
            "peft", _prompt("deep"), tmp_path / "p", base_model=name
        )
    assert list(tmp_path.iterdir()) == []


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_export_replaces_its_like_and_nothing_else(tmp_path):
    first, second = _prompt("deep"), _prompt("deep")
    info = dataclasses.replace(first.info, seed=7)
    second = dataclasses.replace(second, info=info)
    out = tmp_path / "out"
    banks = [
        prompt_folders.PromptBank.of({"a": first, "b": first}),
        prompt_folders.PromptBank.of({"a": first, "b": second}),
    ]
    exchange.export_bank(banks[0], out)
    before = _files(tmp_path)
    exchange.export_bank(banks[0], out)
    assert _files(tmp_path) == before
    # A bank never takes one prompt's place, nor the other way round.
    with pytest.raises(errors.UserError, match="holds a/README.md, a/adapter"):
        exchange.export_prompt("peft", first, out)
    with pytest.raises(errors.UserError, match=r"holds README.md, which"):
        exchange.export_bank(banks[0], out / "a")
    gone = prompt_folders.PromptBank.of({"a": first})
    with pytest.raises(errors.UserError, match="holds b/README.md, b/adapter"):
        exchange.export_bank(gone, out)
    headless = Prompt(np.zeros((2, 2, 0, 2, 64), np.float32), {})
    tuned = dataclasses.replace(first, prompt=headless)
    broken = prompt_folders.PromptBank.of({"a": first, "b": second, "c": tuned})
    with pytest.raises(errors.UserError, match="'c': .*no prompt to export"):
        exchange.export_bank(broken, out, overwrite=True)
    assert _files(tmp_path) == before
    exchange.export_bank(banks[1], out)
    assert prompt_folders.load_prompt(out / "b").info == info
    (out / "b" / "notes.txt").write_text("mine")
    (out / "b" / cards.FILE).write_text("edited")
    before = _files(tmp_path)
    with pytest.raises(errors.UserError, match=r"holds b/README.md, which"):
        exchange.export_bank(banks[0], out)
    assert _files(tmp_path) == before
    # What is edited and would be gone stays, whatever was asked for.
    exchange.export_bank(gone, out, overwrite=True)
    assert {path.name for path in (out / "b").iterdir()} == {
        cards.FILE,
        "notes.txt",
    }
    assert (out / "b" / cards.FILE).read_text() == "edited"


def test_an_npy_file_is_replaced_while_it_is_ours(tmp_path):
    stored = _prompt("shallow", head=False)
    other = Prompt(-stored.prompt.vectors, {})
    other = dataclasses.replace(stored, prompt=other)
    file = exchange.export_prompt("npy", stored, tmp_path)
    exchange.export_prompt("npy", other, tmp_path)
    np.testing.assert_array_equal(np.load(file), other.prompt.vectors)
    np.save(file, np.zeros((2, 3)))
    before = file.read_bytes()
    with pytest.raises(errors.UserError, match="holds cb.npy, which"):
        exchange.export_prompt("npy", stored, tmp_path)
    assert file.read_bytes() == before
    exchange.export_prompt("npy", stored, tmp_path, overwrite=True)
    np.testing.assert_array_equal(np.load(file), stored.prompt.vectors)


def test_one_base_model_is_of_one_backbone(tmp_path):
    one = _prompt("deep")
    info = dataclasses.replace(one.info, fingerprint="g", backbone="c")
    bank = prompt_folders.PromptBank.of(
        {"a": one, "b": dataclasses.replace(one, info=info)}
    )
    with pytest.raises(errors.UserError, match="are of 2 backbones"):
        exchange.export_bank(bank, tmp_path / "out", base_model="some/bert")
    assert list(tmp_path.iterdir()) == []


def test_a_bank_is_not_exported_as_npy(tmp_path, capsys):
    stored = _prompt("shallow", head=False)
    folder = tmp_path / "bank"
    prompt_folders.save_prompt(folder / "a", stored.prompt, stored.info)
    argv = ["export", "npy", str(folder), f"--out_dir={tmp_path / 'out'}"]
    assert cli.main(argv) == 2
    assert "is a bank, which is exported as peft" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loads_neither_torch_nor_transformers(tmp_path):
    torch.save(torch.ones(5, 16), tmp_path / "a.pt")
    code = (
        "import sys\n"
        "from panda_jax.store import exchange\n"
        "from panda_jax.interop import prompthub\n"
        "assert prompthub.read(sys.argv[1]).shape == (5, 16)\n"
        "bad = {m.split('.')[0] for m in sys.modules}\n"
        "bad &= {'tensorflow', 'seqio', 'torch', 'peft', 'transformers'}\n"
        "assert not bad, bad\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.pt")], check=True
    )
