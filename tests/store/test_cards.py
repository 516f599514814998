"""Cards of every kind of prompt: their lines run, and do what they say."""

import dataclasses
import itertools
import pathlib
import re
from importlib import metadata
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from panda_jax import prompts
from panda_jax.interop import hf, peft_code, peft_layout, peft_pairs
from panda_jax.models import bert, decode, t5
from panda_jax.prompts import Prompt
from panda_jax.store import cards, exchange, prompt_folders
from panda_jax.store.backbones import Backbone, load_backbone

P, ROWS, LENGTH, STEPS = 5, 3, 8, 4
KINDS = ("deep", "shallow")
SEQ_2_SEQ = peft_layout.SEQ_2_SEQ
# Task type -> a task of it, and how many outputs its head has.
ENCODERS = {
    "SEQ_CLS": ("cb", 3),
    "TOKEN_CLS": ("conll04", 9),
    "QUESTION_ANS": ("squad", 2),
    "FEATURE_EXTRACTION": ("elsewhere", 0),
}
PAIR = (transformers.__version__, metadata.version("peft"))


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory) -> Backbone:
    """`tiny` as a folder that transformers loads, too."""
    folder = tmp_path_factory.mktemp("bert")
    hf.save(folder, tiny.params, tiny.config)
    tiny.tokenizer.save(folder)
    return dataclasses.replace(tiny, id=str(folder))


@pytest.fixture(scope="module")
def text_to_text(tmp_path_factory) -> Backbone:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=384,
        d_model=16,
        d_kv=4,
        d_ff=32,
        num_layers=3,
        num_heads=4,
        decoder_start_token_id=0,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "ByT5Tokenizer"}'
    )
    return load_backbone(str(folder))


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _prompt(kind: str, config: Any, outputs: int = 0) -> Prompt:
    rng = np.random.default_rng(0)
    shape = prompts.prompt_shape(
        kind,
        P,
        layers=getattr(config, "decoder_layers", config.layers),
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
    )
    sizes = {"kernel": (config.width, outputs), "bias": (outputs,)}
    head = {n: rng.normal(size=s).astype(np.float32) for n, s in sizes.items()}
    vectors = rng.normal(size=shape).astype(np.float32)
    return Prompt(vectors, head if outputs else {})


def _info(
    prompt: Prompt, backbone: Backbone, task: str, task_type: str | None
) -> prompt_folders.PromptInfo:
    return prompt_folders.PromptInfo(
        task=task,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        kind=prompt.kind,
        method="prompt",
        task_type=task_type,
    )


def _exported(
    folder: pathlib.Path, prompt: Prompt, info: prompt_folders.PromptInfo
) -> str:
    """The card in a folder that the prompt is exported to."""
    stored = prompt_folders.StoredPrompt(prompt, info)
    exchange.export_prompt("peft", stored, folder)
    return (folder / cards.FILE).read_text()


def _blocks(card: str, backbone: str) -> list[str]:
    blocks = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    return [
        block.replace("FOLDER OF ITS BACKBONE", backbone) for block in blocks
    ]


def _texts(vocabulary: int) -> np.ndarray:
    tokens = np.random.default_rng(1).integers(5, vocabulary, (ROWS, LENGTH))
    tokens[1, 5:] = 0
    return tokens.astype(np.int32)


def _batch(tokens: np.ndarray) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor(tokens).long(),
        "attention_mask": torch.tensor(tokens != 0).long(),
    }


def _known(form: str) -> list[peft_pairs.Outcome]:
    """What the installed pair may do: of one that is not in the table, any."""
    pair = peft_pairs.find(*PAIR)
    return [p.with_peft[form] for p in ([pair] if pair else peft_pairs.pairs())]


def _ours(backbone: Backbone, prompt: Prompt, tokens, segments, task_type):
    logits, aux = jax.jit(
        bert.apply, static_argnums=1, static_argnames="per_token"
    )(
        backbone.params,
        backbone.config,
        tokens,
        segments,
        prompt,
        per_token=task_type in ("TOKEN_CLS", "QUESTION_ANS"),
    )
    hidden = np.asarray(aux["hidden"])[:, -LENGTH:]
    return np.asarray(logits) if prompt.head else hidden


def _as_said(card: str, out: Any) -> np.ndarray:
    """PEFT's outputs of the text, by the slices that the card writes."""
    found = re.findall(r"`(\w+)\[:, (\d+):\]`", card)
    names = [name for name, _ in found]
    if not names:
        names = ["start_logits", "end_logits", "logits", "last_hidden_state"]
        names = [name for name in names if name in out]
        names = names[:2] if "start_logits" in out else names[:1]
    parts = [out[name] for name in names]
    for part, (_, early) in zip(parts, found, strict=False):
        assert part.shape[1] == LENGTH + P, "it has the prompt's positions"
        assert int(early) == P
    parts = [part[:, P:] if found else part for part in parts]
    stacked = torch.stack(parts, -1) if len(parts) > 1 else parts[0]
    return stacked.detach().numpy()


def _assert_same(ours, theirs, tokens) -> None:
    assert np.ptp(ours) > 1e-2
    if ours.ndim == 3:
        ours, theirs = ours[tokens != 0], theirs[tokens != 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bound", [True, False], ids=["bound", "unbound"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task_type", ENCODERS)
def test_the_lines_of_an_encoders_card(
    tmp_path, monkeypatch, encoder, task_type, kind, bound
):
    task, outputs = ENCODERS[task_type]
    prompt = _prompt(kind, encoder.config, outputs)
    info = _info(prompt, encoder, task, task_type)
    if not bound:
        info = dataclasses.replace(info, fingerprint=None, backbone=None)
    card = _exported(tmp_path, prompt, info)
    ours, theirs, *rest = _blocks(card, encoder.id)
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    exec(ours, defined)
    assert defined["prompt"].info.fingerprint == encoder.fingerprint
    assert defined["backbone"].fingerprint == encoder.fingerprint
    read = defined["prompt"].prompt
    np.testing.assert_array_equal(read.vectors, prompt.vectors)
    tokens = _texts(100)
    segments = ((np.arange(LENGTH) > 2) & (tokens != 0)).astype(np.int32)
    expected = _ours(encoder, read, tokens, segments, task_type)
    # With PEFT: as the card says of these versions.
    exec(theirs, defined)
    outcomes = _known(peft_pairs.form(kind, task_type))
    if any(outcome.result == "raises" for outcome in outcomes):
        assert "**Not with" in card or not peft_pairs.find(*PAIR)
    if all(outcome.result == "raises" for outcome in outcomes):
        with pytest.raises(ValueError, match="past key values") as caught:
            defined["model"](
                **_batch(tokens), token_type_ids=torch.tensor(segments).long()
            )
        assert cards._text(str(caught.value)).rstrip(".") in card
    elif all(outcome.runs for outcome in outcomes):
        whole = all(outcome.result == "same" for outcome in outcomes)
        used = segments if whole else 0 * segments
        with torch.no_grad():
            out = defined["model"](
                **_batch(tokens), token_type_ids=torch.tensor(used).long()
            )
        same = expected
        if not whole:
            same = _ours(encoder, read, tokens, used, task_type)
        _assert_same(same, _as_said(card, out), tokens)
        if (kind, task_type) == ("shallow", "QUESTION_ANS"):
            _assert_positions_are_moved(card, defined["model"], tokens)
    # Without it.
    assert bool(rest) == any(
        pair.with_peft[f"{kind} {task_type}"].result != "same"
        and pair.with_peft[f"{kind} {task_type}"].at != "loading"
        for pair in peft_pairs.pairs()
    )
    for block in rest:
        exec(block, defined)
        with torch.no_grad():
            got = defined["answer"](
                **_batch(tokens), token_type_ids=torch.tensor(segments).long()
            )
        if not outputs:
            got = got.last_hidden_state[:, -LENGTH:]
        _assert_same(expected, got.numpy(), tokens)


def _assert_positions_are_moved(card: str, model: Any, tokens) -> None:
    """PEFT takes positions of an answer as they are: the card says to add P."""
    assert f"subtract {P}" in card
    assert f"add {P} to `start_positions` and `end_positions`" in card
    starts, ends = torch.tensor([1, 2, 3]), torch.tensor([2, 4, 6])

    def loss(early: int) -> float:
        with torch.no_grad():
            return model(
                **_batch(tokens),
                start_positions=starts + early,
                end_positions=ends + early,
            ).loss.item()

    with torch.no_grad():
        out = model(**_batch(tokens))
    whole = (out.start_logits, out.end_logits)
    rows = torch.nn.functional.cross_entropy
    right, wrong = (
        sum(
            rows(logits, where + early).item()
            for logits, where in zip(whole, (starts, ends), strict=True)
        )
        / 2
        for early in (P, 0)
    )
    assert loss(P) == pytest.approx(right, abs=1e-5)
    # What it makes of the positions in the text are the prompt's own logits.
    assert loss(0) == pytest.approx(wrong, abs=1e-5)
    assert abs(right - wrong) > 1e-3
    text = out.start_logits[:, P:].argmax(1)
    among = out.start_logits.clone()
    among[:, :P] = -torch.inf
    assert (among.argmax(1) - P == text).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_t5s_card(tmp_path, monkeypatch, text_to_text, kind):
    prompt = _prompt(kind, text_to_text.config)
    card = _exported(tmp_path, prompt, _info(prompt, text_to_text, "rte", None))
    ours, theirs, *rest = _blocks(card, text_to_text.id)
    assert ":]`" not in card
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    exec(ours, defined)
    read = defined["prompt"].prompt
    tokens = _texts(100)
    expected = np.asarray(
        decode.greedy(
            text_to_text.params,
            text_to_text.config,
            tokens,
            read,
            steps=STEPS,
        )
    )
    outcomes = _known(peft_pairs.form(kind, SEQ_2_SEQ, generate=True))
    if not all(outcome.at != "loading" for outcome in outcomes):
        return
    exec(theirs, defined)
    model, batch = defined["model"].eval(), _batch(tokens)
    if all(outcome.result == "same" for outcome in outcomes):
        got = model.generate(**batch, max_new_tokens=STEPS, do_sample=False)
        np.testing.assert_array_equal(_written(got), expected)
    logits = _known(peft_pairs.form(kind, SEQ_2_SEQ))
    if all(outcome.result == "same" for outcome in logits):
        targets = _texts(100)[:, :4]
        with torch.no_grad():
            got = model(**batch, labels=torch.tensor(targets).long()).logits
        mine, _ = jax.jit(t5.apply, static_argnums=1)(
            text_to_text.params, text_to_text.config, tokens, targets, read
        )
        np.testing.assert_allclose(mine, got.numpy(), atol=1e-4, rtol=0)
        for block in rest:
            exec(block, defined)
            with torch.no_grad():
                got = defined["generate"](**batch, steps=STEPS)
            np.testing.assert_array_equal(_written(got), expected)


def _written(ids: torch.Tensor) -> np.ndarray:
    """[B, STEPS] of what is decoded: 0 after the end of the sequence."""
    got = ids[:, 1 : 1 + STEPS].numpy()
    got = np.pad(got, ((0, 0), (0, STEPS - got.shape[1])))
    return np.where(np.cumsum(got == 1, 1) - (got == 1) > 0, 0, got)


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_causal_models_card(tmp_path, monkeypatch, causal, kind):
    rng = np.random.default_rng(0)
    shape = (P, 16) if kind == "shallow" else (2, 2, P, 2, 4)
    prompt = Prompt(rng.normal(size=shape).astype(np.float32), {})
    info = prompt_folders.PromptInfo(
        task="poems",
        backbone=causal,
        fingerprint=None,
        kind=kind,
        method="import-peft",
        task_type="CAUSAL_LM",
    )
    card = _exported(tmp_path, prompt, info)
    assert "has no backbone for it" in card
    ours, theirs = _blocks(card, causal)
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    exec(ours, defined)
    assert defined["prompt"].info == info
    np.testing.assert_array_equal(
        defined["prompt"].prompt.vectors, prompt.vectors
    )
    exec(theirs, defined)
    tokens = _texts(60)
    tokens[tokens == 0] = 7
    with torch.no_grad():
        got = _as_said(card, defined["model"](**_batch(tokens)))
        expected = _plain_causal(causal, prompt, tokens)
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def _plain_causal(causal: str, prompt: Prompt, tokens) -> np.ndarray:
    """The same by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(causal).eval()
    ids = torch.tensor(tokens).long()
    vectors = torch.tensor(np.asarray(prompt.vectors))
    if prompt.kind == "shallow":
        words = model.get_input_embeddings()(ids)
        rows = vectors.expand(ROWS, -1, -1)
        out = model(inputs_embeds=torch.cat([rows, words], 1))
        return out.logits[:, P:].numpy()
    cache = transformers.DynamicCache()
    for layer, pair in enumerate(vectors):
        keys, values = (
            part.permute(1, 0, 2)[None].expand(ROWS, -1, -1, -1)
            for part in pair
        )
        cache.update(keys, values, layer)
    return model(input_ids=ids, past_key_values=cache).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_card_of_no_task_type(
    tmp_path, monkeypatch, encoder, kind
):
    prompt = _prompt(kind, encoder.config)
    info = _info(prompt, encoder, "elsewhere", peft_layout.TASKLESS)
    info = dataclasses.replace(info, fingerprint=None)
    card = _exported(tmp_path, prompt, info)
    assert "called, it is the model without them" in card
    ours, theirs = _blocks(card, encoder.id)
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    exec(ours, defined)
    assert defined["prompt"].info.task_type == "FEATURE_EXTRACTION"
    exec(theirs, defined)
    model, batch = defined["model"], _batch(_texts(100))
    with torch.no_grad():
        got = model(**batch).last_hidden_state
        plain = model.get_base_model()(**batch).last_hidden_state
        vectors = model.get_prompt(1)
    assert (got == plain).all()
    if kind == "shallow":
        np.testing.assert_array_equal(vectors[0].numpy(), prompt.vectors)
    else:
        keys = torch.stack([layer.keys[0] for layer in vectors.layers])
        np.testing.assert_array_equal(
            keys.transpose(1, 2).numpy(), np.asarray(prompt.vectors)[:, 0]
        )


FORMS = [
    (kind, task_type)
    for kind, task_type in itertools.product(KINDS, [*ENCODERS, SEQ_2_SEQ])
]


@pytest.mark.parametrize(("kind", "task_type"), FORMS)
def test_a_card_names_the_pairs_that_work(encoder, kind, task_type):
    """Before lines that the newest pair cannot run, and only then."""
    task, outputs = ENCODERS.get(task_type, ("rte", 0))
    prompt = _prompt(kind, encoder.config, outputs)
    info = _info(prompt, encoder, task, task_type)
    card = cards.card(prompt_folders.StoredPrompt(prompt, info))
    generate = task_type == SEQ_2_SEQ
    form = peft_pairs.form(kind, task_type, generate=generate)
    newest = peft_pairs.pairs()[-1]
    said = re.search(r"\*\*Not with .*", card)
    assert bool(said) == (not newest.with_peft[form].runs)
    if said is None:
        return
    assert card.index("**Not with") < card.index("from peft import PeftModel")
    assert (
        f"transformers {newest.transformers} and PEFT {newest.peft}" in said[0]
    )
    named = re.findall(
        r"transformers ([\d. or]+) with PEFT ([\d. or]+\d)", said[0]
    )
    told = {
        (ours, theirs)
        for versions, others in named
        for ours in versions.split(" or ")
        for theirs in others.split(" or ")
    }
    assert told == {
        (pair.transformers, pair.peft)
        for pair in peft_pairs.pairs()
        if pair.with_peft[form].runs
    }
    assert told


def test_deep_prompts_of_encoders_are_the_ones_that_the_newest_refuses():
    """What the sentence is for; when this changes, so may the sentence."""
    newest = peft_pairs.pairs()[-1]
    lost = {f for f, outcome in newest.with_peft.items() if not outcome.runs}
    assert "deep SEQ_CLS" in lost
    assert all(form.startswith("deep ") for form in lost)


def test_every_task_type_has_lines():
    assert peft_layout.HEADS.keys() == peft_code._CLASSES.keys()
