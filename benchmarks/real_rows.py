"""Is training and evaluation on real rows faster than PEFT's, and than before?

    python benchmarks/real_rows.py --data_dir=DATA --out=FILE.json
    python benchmarks/real_rows.py --data_dir=DATA --out=FILE.json \
        --before=PYTHON:CHECKOUT --tasks=rte,cola --rounds=3
    python benchmarks/real_rows.py --data_dir=DATA --out=FILE.json \
        --backbone=t5_1_1-small --tasks=sst2,mrpc --rows=480

Real rows are of many lengths, most of them short: what counts is how little
padding is computed. 960 rows a task (or all, of smaller ones), batch 16, at
most 128 pieces, a deep prompt of 20, dropout 0.1, AdamW, clipping at norm 1, a
linear schedule, fp32. The unit is examples (of COPA questions) a second, over
whole steps and over the validation rows (960 at most).

- ours: `panda_jax.train` and `panda_jax.evaluate` as users call them, from a
  loaded backbone. A run of a step and one of so many steps more, each with
  evaluations of two rows, are timed, and the difference counts: no loading, no
  compilation (both ran before on the same rows), no evaluation. Likewise an
  evaluation of all rows less one of two.
- before: the same of an earlier build, run by PYTHON with CHECKOUT imported.
- PEFT random, PEFT grouped: PREFIX_TUNING on transformers' BERT with a head for
  sequences or tokens, in a plain loop with fused AdamW. Our token ids, padded
  to a batch's longest by `DataCollatorWithPadding`; batches drawn at random, or
  of like length as transformers' `LengthGroupedSampler` draws them. Evaluation
  in batches of 64, sorted by length. COPA is two rows a question whose logits
  are compared, a CoNLL04 row is labelled token by token.

With a T5 (random weights of the named size, T5's own vocabulary) the prompt is
shallow, 100 long, PEFT's PROMPT_TUNING; ours has its defaults for a T5
(Adafactor). Both rank label words in evaluation, with one pass of the encoder.
- T5X padded, where the three folders of `t5_step.py` are given: its step with
  every row padded to the split's longest, as SeqIO's feature lengths ask for.
  It is not evaluated, nor compared here: `t5_step.py` does that.

Before anything is timed the logits of 64 validation rows are compared, of one
prompt, which PEFT reads from the folder that we wrote; and the rows themselves.

`positions` are those that an encoder computes in one pass over the rows, and
`tokens` those of them that are no padding. `--vocabulary` gives a backbone of
random weights (`random:NAME`) real pieces. `--fill` only fills the token caches
(`PANDA_CACHE_DIR`), which takes the extra `data`; nothing else does.
"""

import argparse
import dataclasses
import functools
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import turns

TASKS = (
    "cb",
    "copa",
    "rte",
    "wic",
    "wsc",
    "cola",
    "mrpc",
    "stsb",
    "conll04",
    "sst2",
)
OURS, BEFORE, PADDED = "ours", "before", "T5X padded"
RANDOM, GROUPED = "PEFT random", "PEFT grouped"
WORKS = ("training", "evaluation")
T5 = "t5_1_1-small"
T5_VOCABULARY = "t5_vocab/spiece.model"
BATCH, JUDGED, MAX_LENGTH = 16, 64, 128
# Steps that are timed at least, and rows whose logits are compared.
STEPS, COMPARED = 60, 64
DEEP, SHALLOW = 20, 100
# Rows of the evaluations that the public calls cannot leave out, and steps
# that torch does before any counts.
FEW, WARM = 2, 10
DROPOUT, RATE, T5_RATE = 0.1, 1e-2, 0.3
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
FOLDERS = ("t5x", "prompt_tuning", "flaxformer")
HIDDEN = ("data_dir", "vocabulary", "before", *FOLDERS)

Options = Mapping[str, Any]
# An example as the peers take it: rows of (ids, segments), and the label.
Item = dict[str, Any]


# What ways are made of.


def _evaluation() -> Any:
    """The module that evaluates, whatever this build calls it."""
    import panda_jax as pj

    return sys.modules[pj.evaluate.__module__]


def _view(task: str, split: str, limit: int, backbone: Any, given: Options):
    """Rows as this build's runs read them."""
    return _evaluation().load_view(
        task,
        split,
        backbone=backbone,
        max_length=MAX_LENGTH,
        data_dir=given["data_dir"],
        limit=limit,
    )


def prepared(
    folder: str | None, tasks: Sequence[str], given: Options
) -> turns.Way:
    """Fills the token caches; what the peers need, where a folder is given.

    The facts are the backbone that all take, the folder that transformers
    loads, and each task's rows and prompt.
    """
    import jax

    import panda_jax as pj

    name, source = given["backbone"], None
    if folder is not None:
        name, source = _backbone(pathlib.Path(folder), given)
    backbone = pj.load_backbone(name, dtype="float32")
    found = {}
    for task in tasks:
        views = {
            split: _view(task, split, given["rows"], backbone, given)
            for split in ("train", "validation")
        }
        if folder is None:
            continue
        few = _view(
            task, "validation", min(COMPARED, given["rows"]), backbone, given
        )
        stored = _stored(task, backbone)
        adapter = pathlib.Path(folder) / task
        pj.save_prompt(adapter, stored.prompt, stored.info)
        found[task] = {
            **{split: _items(view) for split, view in views.items()},
            "compared": _items(few),
            "kind": "text" if backbone.text_to_text else few.kind,
            "outputs": _spec(task).outputs,
            "words": _words(task, backbone),
            "adapter": str(adapter),
        }
    facts = {
        "device": turns.accelerator(jax),
        "backbone": name,
        "folder": source,
        "text": backbone.text_to_text,
        "tasks": found,
    }
    return turns.Way(lambda count: None, facts=facts)


def _spec(task: str) -> Any:
    from panda_jax.tasks import specs

    return specs.get(task)


def _backbone(folder: pathlib.Path, given: Options) -> tuple[str, str]:
    """What all builds load, and the folder that transformers loads."""
    import flax.linen as nn
    import jax

    import panda_jax as pj
    from panda_jax import models
    from panda_jax.interop import hf

    name, words = given["backbone"], given["vocabulary"]
    place = folder / "backbone"
    place.mkdir()
    if words is None:
        loaded = pj.load_backbone(name, dtype="float32")
        hf.save(place, loaded.params, loaded.config)
        return name, str(place)
    config: Any = models.config(name.removeprefix("random:"))
    kept = "spiece.model"
    if not models.is_text_to_text(config):
        kept = "vocab.txt"
        pieces = len(pathlib.Path(words).read_text().splitlines())
        config = dataclasses.replace(config, vocab_size=pieces)
    params = models.module(config).init(jax.random.key(0), config)
    hf.save(place, nn.meta.unbox(params), config)
    shutil.copyfile(words, place / kept)
    return str(place), str(place)


def _stored(task: str, backbone: Any) -> Any:
    """A prompt of random numbers, and a head; the same of every build."""
    import panda_jax as pj

    rng = np.random.default_rng(0)
    c, outputs = backbone.config, _spec(task).outputs
    if backbone.text_to_text:
        kind, head = "shallow", {}
        vectors = rng.uniform(0, 0.5, (SHALLOW, c.width))
    else:
        kind = "deep"
        vectors = rng.normal(size=(c.layers, 2, DEEP, c.heads, c.head_dim))
        head = {
            "kernel": np.float32(rng.normal(size=(c.width, outputs)) * 0.1),
            "bias": np.zeros(outputs, np.float32),
        }
    info = sys.modules[pj.StoredPrompt.__module__].PromptInfo(
        task=task,
        backbone=backbone.id,
        fingerprint=backbone.fingerprint,
        kind=kind,
        method="prompt",
        max_length=MAX_LENGTH,
    )
    return pj.StoredPrompt(pj.Prompt(np.float32(vectors), head), info)


def _items(examples: Any) -> list[Item]:
    """Examples without padding."""
    found = []
    for number in range(len(examples)):
        rows = np.ravel(examples.rows(np.array([number])))
        rows = rows[rows >= 0]
        sizes = [int((examples.tokens[row] != 0).sum()) for row in rows]
        item: Item = {}
        if hasattr(examples, "targets"):
            target = examples.targets[number]
            item["label"] = target[target != 0].tolist()
            segments = np.zeros_like(examples.tokens)
        else:
            segments, labels = examples.segments, examples.labels[rows]
            if examples.kind == "choice":
                item["label"] = int(labels.argmax())
            elif examples.kind == "tags":
                # Torch's mark of what is not learnt.
                own = np.where(labels < 0, -100, labels)[0]
                item["label"] = own[: sizes[0]].tolist()
            else:
                item["label"] = labels[0].item()
        item["rows"] = [
            (examples.tokens[r, :n].tolist(), segments[r, :n].tolist())
            for r, n in zip(rows, sizes, strict=True)
        ]
        found.append(item)
    return found


def _words(task: str, backbone: Any) -> list[list[int]] | None:
    """Ids of the label words that a T5 ranks."""
    spec, tokenizer = _spec(task), backbone.tokenizer
    if not backbone.text_to_text:
        return None
    if not _evaluation().is_ranked(spec):
        raise SystemExit(f"A T5 has no label words of {task}: leave it out.")
    return [[*x, tokenizer.eos_id] for x in tokenizer.encode(spec.labels)]


def _length(item: Item) -> int:
    """Of the longest row: its questions are batched whole."""
    return max(len(ids) for ids, _ in item["rows"])


def tokens_of(item: Item) -> int:
    """Of all its rows."""
    return sum(len(ids) for ids, _ in item["rows"])


def _pieces(items: Sequence[Item]) -> np.ndarray:
    """A number a row, the same of the same ids and segments."""
    rows = [row for item in items for row in item["rows"]]
    return np.array([float(zlib.crc32(repr(row).encode())) for row in rows])


def epoch_steps(items: Sized) -> int:
    """Whole batches of a pass."""
    return max(1, len(items) // BATCH)


# Ours, and that of another build.


def ours(task: str, steps: int, given: Options) -> turns.Way:
    """This build's public calls."""
    import jax

    import panda_jax as pj

    backbone = pj.load_backbone(given["backbone"], dtype=given["dtype"])
    text = backbone.text_to_text
    options: dict[str, Any] = {"data_dir": given["data_dir"]}
    settings = {"dropout": DROPOUT, **options}
    if not text:
        settings |= {"learning_rate": RATE, "prompt_length": DEEP}
    compiled = [0]

    def counted(event: str, duration: float, **_: Any) -> None:
        compiled[0] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(counted)

    def trained(more: int) -> tuple[float, int]:
        """Seconds of a run, and how much it compiled."""
        before, begun = compiled[0], time.perf_counter()
        pj.train(
            backbone,
            task=task,
            steps=more,
            eval_period=more,
            train_examples=given["rows"],
            eval_examples=FEW,
            batch_size=BATCH,
            max_length=MAX_LENGTH,
            quiet=True,
            **settings,
        )
        return time.perf_counter() - begun, compiled[0] - before

    def training(count: int) -> float:
        short, few = trained(1)
        long, many = trained(1 + count * steps)
        if warm and many > few:
            print(f"{task}: compiled while timed", file=sys.stderr)
        return long - short

    stored = _stored(task, backbone)

    def judged(rows: int) -> float:
        begun = time.perf_counter()
        pj.evaluate(
            stored,
            task=task,
            backbone=backbone,
            max_length=MAX_LENGTH,
            eval_examples=rows,
            **options,
        )
        return time.perf_counter() - begun

    views = {
        split: _view(task, split, given["rows"], backbone, given)
        for split in ("train", "validation")
    }
    few = _view(
        task, "validation", min(COMPARED, given["rows"]), backbone, given
    )
    outputs = {
        "logits": _logits(task, backbone, stored.prompt, few),
        "pieces": np.concatenate(
            [_pieces(_items(view)) for view in (*views.values(), few)]
        ),
    }

    def evaluation(count: int) -> float:
        rows = len(views["validation"])
        found = [judged(given["rows"]) - judged(FEW) for _ in range(count)]
        # Of the rows that were taken away, as much again as of the others.
        return sum(found) * rows / (rows - FEW)

    warm = False
    for work in (training, evaluation):
        work(1)
    warm = True
    positions = {
        "training": _batch_positions(backbone, views["train"]),
        "evaluation": _split_positions(backbone, views["validation"]),
    }
    return turns.Way(
        training,
        outputs,
        {"positions": positions},
        {"training": training, "evaluation": evaluation},
    )


def _logits(task: str, backbone: Any, prompt: Any, few: Any) -> np.ndarray:
    """[R, C] of rows, of tags' tokens, or of label words."""
    import jax

    module = _evaluation()
    if backbone.text_to_text:
        lane = jax.tree.map(lambda x: jax.numpy.asarray(x)[None], prompt)
        (found,) = module.fleet_outputs(
            backbone,
            module.Trainable(lane),
            backbone.params,
            few,
            lanes=module.Lanes(),
            spec=_spec(task),
        )
        return found
    found = module.outputs(backbone.params, backbone.config, prompt, few)
    return found[few.tokens != 0] if few.kind == "tags" else found


def _packing() -> Any:
    """How this build lays rows end to end on this device, or None."""
    import jax

    try:
        from panda_jax.data import packing
    except ImportError:
        return None
    return packing if jax.default_backend() == "cpu" else None


def _carried(backbone: Any) -> int:
    """Positions of a shallow prompt, which every text has."""
    return SHALLOW if backbone.text_to_text else 0


def _batch_positions(backbone: Any, examples: Any) -> int:
    """Of one pass in batches."""
    more, packing = _carried(backbone), _packing()
    order = np.random.default_rng(0).permutation(len(examples))
    steps = epoch_steps(range(len(examples)))
    batches = [
        examples.rows(chosen).ravel()
        for chosen in np.resize(order, (steps, BATCH))
    ]
    if packing is None:
        width = examples.tokens.shape[1] + more
        return sum(rows.size for rows in batches) * width
    lengths = packing.lengths_of(examples.tokens) + more
    packer = packing.packer(lengths, batches[0].size)
    return sum(
        part.rows * part.width
        for rows in batches
        for part in packer.parts(np.where(rows < 0, 0, lengths[rows]).tolist())
    )


def _split_positions(backbone: Any, examples: Any) -> int:
    """Of all rows, evaluated."""
    more, packing, module = _carried(backbone), _packing(), _evaluation()
    if packing is None or backbone.text_to_text:
        of = getattr(module, "sorted_batches", None) or module.padded_batches
        found = [batch[-1] for batch in of(examples, JUDGED)]
        return sum(x.size + len(x) * more for x in found)
    lengths = packing.lengths_of(examples.tokens)
    parts = packing.packer(lengths, JUDGED).blocks(lengths.tolist())
    return sum(part.rows * part.width for part in parts)


# PEFT.


def theirs(grouped: bool, steps: int, folder: str, given: Options) -> turns.Way:
    """PEFT's prompt in a plain loop; `given` are the task's facts too."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    torch.manual_seed(0)
    # As XLA does; else tiny gradients slow torch down.
    torch.set_flush_denormal(True)
    kind, items, judged = given["kind"], given["train"], given["validation"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _model(folder, given).to(device)
    half = functools.partial(
        torch.autocast, device, torch.bfloat16, given["dtype"] == "bfloat16"
    )
    collated = _collated(kind, device)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        learnt,
        lr=T5_RATE if kind == "text" else RATE,
        weight_decay=0.0,
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 10**6)
    batches = _batches(items, grouped=grouped)

    def step(chosen: Sequence[int]) -> None:
        inputs, labels = collated([items[n] for n in chosen])
        with half():
            loss = _loss(model, kind, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    def training(count: int) -> None:
        model.train()
        for _ in range(count * steps):
            step(next(batches))
        _done(device)

    def answers(some: Sequence[Item]) -> Any:
        """Logits [R, C] of rows, [R, T, C] of tags."""
        inputs, _ = collated(some)
        with torch.inference_mode(), half():
            if kind == "text":
                return _ranked(model, inputs, given["words"])
            return model(**inputs).logits

    by_length = sorted(judged, key=_length, reverse=True)
    parts = list(_parts(by_length, JUDGED))

    def evaluation(count: int) -> None:
        model.eval()
        for _ in range(count):
            for part in parts:
                answers(part).argmax(-1).cpu().numpy()

    model.eval()
    outputs = _compared(answers, given)
    for part in parts[:2]:
        answers(part)
    model.train()
    for _ in range(WARM):
        step(next(batches))
    return turns.Way(
        training,
        outputs,
        {"positions": _their_positions(items, parts, batches, kind)},
        {"training": training, "evaluation": evaluation},
    )


def _done(device: str) -> None:
    """Waits for what was only sent to a device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _their_positions(
    items: Sequence[Item],
    parts: Sequence[Sequence[Item]],
    batches: Iterator[list[int]],
    kind: str,
) -> dict[str, int]:
    """Of a pass in batches, and of all evaluated rows."""
    more = SHALLOW if kind == "text" else 0
    epoch = [next(batches) for _ in range(epoch_steps(items))]
    learnt = [[items[n] for n in chosen] for chosen in epoch]
    return {
        work: sum(_padded(part, more) for part in found)
        for work, found in zip(WORKS, (learnt, parts), strict=True)
    }


def _model(folder: str, given: Options) -> Any:
    """PEFT's model with our prompt, which it may learn from."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    if given["kind"] == "text":
        made = transformers.T5ForConditionalGeneration.from_pretrained(
            folder, dropout_rate=DROPOUT
        )
    else:
        name = "Token" if given["kind"] == "tags" else "Sequence"
        made = getattr(
            transformers, f"BertFor{name}Classification"
        ).from_pretrained(
            folder,
            num_labels=given["outputs"],
            **dict.fromkeys(rates, DROPOUT),
        )
    # PEFT's own way of loading gives a prompt that cannot be learnt.
    config = peft.PeftConfig.from_pretrained(given["adapter"])
    config.inference_mode = False
    model = peft.get_peft_model(made, config)
    peft.set_peft_model_state_dict(
        model, peft.load_peft_weights(given["adapter"], device="cpu")
    )
    return model


def _collated(kind: str, device: str) -> Callable[[Sequence[Item]], Any]:
    """Items -> inputs and labels where torch computes, padded together."""
    import tokenizers
    import torch
    import transformers

    # Only what pads: the ids are there.
    empty = tokenizers.models.WordLevel({"[PAD]": 0}, unk_token="[PAD]")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(empty), pad_token="[PAD]"
    )
    pad = transformers.DataCollatorWithPadding(tokenizer)

    def features(ids: list[int], segments: list[int]) -> dict[str, Any]:
        found = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return found if kind == "text" else found | {"token_type_ids": segments}

    def collated(items: Sequence[Item]) -> Any:
        inputs = pad([features(*row) for item in items for row in item["rows"]])
        labels = [item["label"] for item in items]
        if kind in ("tags", "text"):
            longest = max(map(len, labels))
            labels = [x + [-100] * (longest - len(x)) for x in labels]
        moved = {name: x.to(device) for name, x in inputs.items()}
        return moved, torch.tensor(labels).to(device)

    return collated


def _loss(model: Any, kind: str, inputs: Any, labels: Any) -> Any:
    import torch

    if kind != "choice":
        return model(**inputs, labels=labels).loss
    logits = model(**inputs).logits.view(len(labels), -1)
    return torch.nn.functional.cross_entropy(logits, labels)


def _batches(items: Sequence[Item], *, grouped: bool) -> Iterator[list[int]]:
    """Batches of pass after pass; what is left of a pass is dropped."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    generator = torch.Generator().manual_seed(0)
    lengths = list(map(_length, items))
    while True:
        if grouped:
            order = get_length_grouped_indices(
                lengths, BATCH, generator=generator
            )
        else:
            order = torch.randperm(len(items), generator=generator).tolist()
        for number in range(epoch_steps(items)):
            yield order[number * BATCH : (number + 1) * BATCH]


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def _padded(items: Sequence[Item], more: int) -> int:
    """Positions of a batch, `more` of them before each text."""
    rows = sum(len(item["rows"]) for item in items)
    return rows * (max(map(_length, items)) + more)


def _ranked(model: Any, inputs: Any, words: list[list[int]]) -> Any:
    """[B, C] log-probabilities of label words, with one pass of the encoder."""
    import torch

    t5, ids, count = model.base_model, inputs["input_ids"], len(words)
    prompt = model.get_prompt(batch_size=len(ids))
    mask = torch.cat(
        [ids.new_ones(len(ids), prompt.shape[1]), inputs["attention_mask"]], 1
    )
    texts = torch.cat([prompt, t5.get_input_embeddings()(ids)], 1)
    (read,) = t5.get_encoder()(
        inputs_embeds=texts, attention_mask=mask, return_dict=False
    )
    longest = max(map(len, words))
    padded = [x + [-100] * (longest - len(x)) for x in words]
    labels = torch.tensor(padded, device=ids.device).repeat(len(ids), 1)
    logits = t5(
        encoder_outputs=(read.repeat_interleave(count, 0),),
        attention_mask=mask.repeat_interleave(count, 0),
        labels=labels,
    ).logits.float()
    found = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none"
    )
    return -found.sum(-1).view(-1, count)


def _compared(answers: Callable[..., Any], given: Options) -> dict[str, Any]:
    """The outputs of the compared rows, as `ours` has them."""
    found = []
    for part in _parts(given["compared"], BATCH):
        logits = answers(part).float().cpu().numpy()
        if given["kind"] == "tags":
            rows = zip(logits, map(_length, part), strict=True)
            logits = np.concatenate([row[:n] for row, n in rows])
        found.append(logits)
    names = ("train", "validation", "compared")
    pieces = [_pieces(given[name]) for name in names]
    return {
        "logits": np.concatenate(found),
        "pieces": np.concatenate(pieces),
    }


# T5X.


def padded(
    steps: int, folder: str, folders: Mapping[str, str], items: Sequence[Item]
) -> turns.Way:
    """T5X's step, each row padded to the longest of all."""
    # It imports JAX and this build.
    import t5_step

    order = np.random.default_rng(0).permutation(len(items))
    batches = np.resize(order, (epoch_steps(items), BATCH))

    def filled(texts: Sequence[Sequence[int]]) -> np.ndarray:
        whole = np.zeros((len(texts), max(map(len, texts))), np.int32)
        for row, text in zip(whole, texts, strict=True):
            row[: len(text)] = text
        return whole[batches]

    inputs = filled([item["rows"][0][0] for item in items])
    targets = filled([item["label"] for item in items])
    way = t5_step.t5x(
        pathlib.Path(folder), SHALLOW, folders, "float32", (inputs, targets)
    )
    way.run(1)

    def training(count: int) -> None:
        way.run(count * steps)

    computed = inputs[..., 0].size * (inputs.shape[-1] + SHALLOW)
    return turns.Way(
        training,
        {},
        {"positions": {"training": computed}},
        {"training": training},
    )


# The measurement.


def makers_of(
    task: str, args: argparse.Namespace, made: Options
) -> dict[str, Any]:
    """What makes each way of a task."""
    about = made["tasks"][task]
    steps = steps_of(about["train"], args.steps)
    own = (task, steps, given_of(args, made))
    given_them = (steps, made["folder"], {**about, "dtype": args.dtype})
    ways: dict[str, Any] = {
        OURS: (ours, own),
        BEFORE: (ours, own, args.before),
        RANDOM: (theirs, (False, *given_them)),
        GROUPED: (theirs, (True, *given_them)),
        PADDED: (padded, (steps, made["folder"], args.folders, about["train"])),
    }
    return {name: ways[name] for name in args.ways}


def steps_of(items: Sequence[Item], least: int) -> int:
    """Of whole passes that come to about so many steps."""
    epoch = epoch_steps(items)
    return epoch * max(1, round(least / epoch))


def measured(
    task: str, args: argparse.Namespace, made: Options
) -> list[dict[str, Any]]:
    """A task's cases: training, evaluation."""
    about, cases = made["tasks"][task], []
    rows = {"training": about["train"], "evaluation": about["validation"]}
    counts = {
        "training": BATCH * steps_of(about["train"], args.steps),
        "evaluation": len(about["validation"]),
    }
    # A small split is evaluated as often as makes as many rows.
    often = max(1, round(args.rows / counts["evaluation"]))
    times = {"training": 1, "evaluation": often}
    with turns.started(makers_of(task, args, made)) as workers:
        alike = [name for name, one in workers.items() if one.outputs]
        differences = turns.differences_of(
            workers, TOLERANCE[args.dtype], [alike]
        )
        for work in WORKS:
            positions = {
                name: one.facts["positions"][work]
                for name, one in workers.items()
                if work in one.facts["positions"]
            }
            first, *others = positions
            pairs = {f"{name} / {first}": (first, name) for name in others}
            taken = turns.in_turn(
                {name: workers[name] for name in positions},
                dict.fromkeys(positions, times[work]),
                args.rounds,
                work,
            )
            count, items = counts[work], rows[work]
            case = {
                "case": f"{args.backbone}, {task}, {work}",
                "examples": count,
                "examples_a_second": {
                    name: turns.spread([count / x for x in seconds])
                    for name, seconds in taken.items()
                },
                "seconds": {k: turns.spread(x) for k, x in taken.items()},
                "ratio": turns.ratios(taken, pairs),
                "differences": differences,
                "rows": sum(len(item["rows"]) for item in items),
                "tokens": sum(map(tokens_of, items)),
                "positions": positions,
            }
            shown = {k: x["median"] for k, x in case["ratio"].items()}
            print(case["case"], shown, file=sys.stderr, flush=True)
            cases.append(case)
    return cases


def means(cases: Sequence[dict[str, Any]], backbone: str) -> list[dict]:
    """Geometric means of the tasks' ratios, of each of their numbers."""
    found = []
    for work in WORKS:
        of = [x["ratio"] for x in cases if x["case"].endswith(f", {work}")]
        ratio: dict[str, dict[str, float]] = {}
        for name in of[0] if of else ():
            ratio[name] = {
                key: float(
                    f"{statistics.geometric_mean(x[name][key] for x in of):.4g}"
                )
                for key in ("median", "low", "high", "least", "most")
            }
        case = f"{backbone}, geometric mean of {len(of)} tasks, {work}"
        found.append({"case": case, "ratio": ratio})
    return found


def flags_of(doc: str | None) -> argparse.ArgumentParser:
    """Flags of whatever reads real rows."""
    flags = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--out", type=pathlib.Path)
    flags.add_argument("--data_dir")
    flags.add_argument("--backbone", default="minilm-l6")
    flags.add_argument("--vocabulary", help="vocab.txt or spiece.model")
    flags.add_argument("--tasks", default=",".join(TASKS))
    flags.add_argument("--before", help="PYTHON:CHECKOUT", type=turns.Build.of)
    flags.add_argument("--rows", type=int, default=960)
    flags.add_argument("--rounds", type=int, default=3)
    flags.add_argument("--dtype", default="float32", choices=TOLERANCE)
    flags.add_argument("--fill", action="store_true")
    return flags


def read(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """What was given, with what follows from it."""
    args = flags.parse_args()
    if args.out is None and not args.fill:
        flags.error("--out=FILE.json is missing.")
    args.tasks = args.tasks.split(",")
    if args.backbone.startswith("t5"):
        args.backbone = f"random:{args.backbone}"
    if args.vocabulary is None and args.backbone.startswith("random:t5"):
        args.vocabulary = str(pathlib.Path(args.data_dir or "", T5_VOCABULARY))
    return args


def files(folder: str, args: argparse.Namespace) -> dict[str, Any]:
    """The facts of `prepared`; the token caches of all builds are filled."""
    given = {
        "backbone": args.backbone,
        "vocabulary": args.vocabulary,
        "data_dir": args.data_dir,
        "rows": args.rows,
    }
    # In processes that end: what fills caches takes much memory.
    made = _facts(prepared, folder, args.tasks, given)
    if args.before is not None:
        own = {**given, "backbone": made["backbone"]}
        _facts(prepared, None, args.tasks, own, build=args.before)
    return made


def given_of(args: argparse.Namespace, made: Options) -> dict[str, Any]:
    """What a way of any build is given."""
    return {
        "backbone": made["backbone"],
        "data_dir": args.data_dir,
        "rows": args.rows,
        "dtype": args.dtype,
    }


def builds_of(args: argparse.Namespace) -> dict[str, str | None]:
    """The builds' commits."""
    found = {OURS: turns.commit()}
    if args.before is not None:
        found[BEFORE] = args.before.commit()
    return found


def _facts(
    maker: turns.Maker, *arguments: Any, build: turns.Build | None = None
) -> dict[str, Any]:
    """What a process says that ends then."""
    worker = turns.Worker(maker.__name__, maker, arguments, build)
    try:
        return worker.made().facts
    finally:
        worker.end()


def main() -> None:
    """Prepares, measures task by task, and writes a JSON file."""
    flags = flags_of(__doc__)
    known = [OURS, BEFORE, RANDOM, GROUPED]
    flags.add_argument("--ways", default=",".join(known))
    flags.add_argument("--steps", type=int, default=60, help="at least")
    for name in FOLDERS:
        flags.add_argument(f"--{name}", help="folder of its sources")
    args = read(flags)
    args.ways = args.ways.split(",")
    if unknown := {*args.ways} - {*known}:
        flags.error(f"There is no way {unknown.pop()!r}, only {known}.")
    if BEFORE not in args.ways:
        args.before = None
    elif args.before is None:
        args.ways.remove(BEFORE)
    args.folders = {name: getattr(args, name) for name in FOLDERS}
    if all(args.folders.values()):
        args.ways.append(PADDED)
    with tempfile.TemporaryDirectory() as folder:
        made = files(folder, args)
        if args.fill:
            return
        results: list[dict[str, Any]] = []
        for number, task in enumerate(args.tasks, 1):
            results += measured(task, args, made)
            turns.report(
                [*results, *means(results, args.backbone)],
                out=args.out,
                device=made["device"],
                hidden=HIDDEN,
                told=number == len(args.tasks),
                builds=builds_of(args),
            )


if __name__ == "__main__":
    main()
