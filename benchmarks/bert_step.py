"""Is a PANDA step on BERT faster than torch's, and dearer than prompt-tuning's?

    python benchmarks/bert_step.py --backbone=minilm-l6 --out=FILE.json

The paper's shapes: a deep prompt of 20, batches of 16 texts of 128 pieces,
dropout 0.1 everywhere, AdamW, clipping at norm 1, fp32.

Ours is what the trainer runs (`fleet.run_steps`, several steps a dispatch):
PANDA with the teacher's logits over the training set computed before (`panda`),
with the teacher in the step (`panda online`), and prompt-tuning (`prompt`).

Theirs, on torch and transformers as they are today:
  released: what the paper's release does in a step: a copy of the model as the
    teacher, in training mode and with its graph, whose gradients are computed
    and thrown away; attention as then ("eager"); torch's AdamW.
  careful: the teacher in evaluation mode and without a graph, "sdpa" attention,
    fused AdamW.
  torch prompt: the careful step without a teacher.
  PEFT prefix: PEFT's PREFIX_TUNING on BertForSequenceClassification.

Compared first, without dropout: losses, logits and the prompt's gradient.

All ways at once hold 20 GB at bert-base's sizes: `--only` picks some.

On an accelerator torch takes CUDA's device; `--dtype=bfloat16` is how both
hold the backbone (prompts stay fp32), `--compile` puts torch's models through
`torch.compile`.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import turns

BATCH, TEXT, PROMPT, CLASSES, ROWS = 16, 128, 20, 3, 64
RATE, WEIGHT = 7e-3, 0.1 * 0.1 / BATCH
OURS = ("panda", "panda online", "prompt")
THEIRS = ("released", "careful", "torch prompt", "PEFT prefix")
PAIRS = {
    "released / panda": ("panda", "released"),
    "careful / panda": ("panda", "careful"),
    "released / panda online": ("panda online", "released"),
    "careful / panda online": ("panda online", "careful"),
    "torch prompt / prompt": ("prompt", "torch prompt"),
    "PEFT prefix / prompt": ("prompt", "PEFT prefix"),
    "panda / prompt": ("prompt", "panda"),
    "panda online / prompt": ("prompt", "panda online"),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all ways are given: numbers of a seed, and the backbone's sizes."""

    layers: int
    heads: int
    width: int
    vocabulary: int
    dtype: str = "float32"
    compile: bool = False

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and segments [ROWS, TEXT], labels [ROWS]; some padding."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(999, self.vocabulary, (ROWS, TEXT))
        lengths = rng.integers(TEXT // 2, TEXT + 1, ROWS)
        tokens[np.arange(TEXT) >= lengths[:, None]] = 0
        segments = (np.arange(TEXT) >= lengths[:, None] // 2) & (tokens != 0)
        labels = rng.integers(0, CLASSES, ROWS)
        return tuple(np.int32(x) for x in (tokens, segments, labels))

    def prompt(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A deep prompt [L, 2, P, H, K] and a head's kernel [D, C]."""
        rng = np.random.default_rng(seed)
        shape = (self.layers, 2, PROMPT, self.heads, self.width // self.heads)
        vectors = rng.normal(size=shape).astype(np.float32)
        kernel = rng.normal(size=(self.width, CLASSES)) * 0.1
        return vectors, kernel.astype(np.float32)

    def batches(self) -> Iterator[np.ndarray]:
        """[BATCH] rows of every step."""
        rng = np.random.default_rng(1)
        while True:
            yield rng.permutation(ROWS)[:BATCH]


STUDENT, TEACHER = 1, 2


def ours(backbone: str, method: str, unit: int, work: Work) -> turns.Way:
    """The trainer's step, `unit` steps a dispatch."""
    import jax

    from panda_jax import load_backbone
    from panda_jax.planning.hlo import costs
    from panda_jax.prompts import Prompt
    from panda_jax.step import fleet, steps
    from panda_jax.types import Batch

    loaded = load_backbone(backbone, dtype=work.dtype)
    config = dataclasses.replace(
        loaded.config,
        dropout=0.1,
        attention_dropout=0.1,
        unroll=jax.default_backend() == "cpu",
    )
    spec = steps.StepSpec(config, "classification")
    vectors, kernel = work.prompt(STUDENT)
    prompt = Prompt(vectors, {"kernel": kernel, "bias": np.zeros(CLASSES)})
    vectors, kernel = work.prompt(TEACHER)
    teacher = Prompt(vectors, {"kernel": kernel, "bias": np.zeros(CLASSES)})
    prompt, teacher = jax.tree.map(np.float32, (prompt, teacher))
    data = Batch(*work.rows())
    online = method == "panda online"
    taught = None
    if not online:
        taught = np.zeros((1, ROWS, CLASSES), np.float32)
        if method == "panda":
            found = steps.predict_step(
                loaded.params, data.tokens, data.segments, teacher,
                config=config,
            )  # fmt: skip
            taught[0] = found
    hyper = steps.Hyper(
        learning_rate=np.float32(RATE),
        weight_decay=np.float32(0),
        total_steps=np.float32(1e6),
        kd_weight=np.float32(0 if method == "prompt" else WEIGHT),
        key=jax.random.key(0),
    )
    outputs = _our_outputs(loaded.params, prompt, teacher, data, hyper, method,
                           config)  # fmt: skip

    order = np.stack([next(_rows) for _rows in [work.batches()] * unit])
    feed = jax.device_put(
        fleet.Feed(
            data, taught, np.int32(order[:, None]), np.int32(0), np.int32(unit)
        )
    )
    hypers = fleet.stack([hyper], length=1)
    teachers = fleet.stack([teacher], length=1) if online else None
    states = fleet.stack([steps.init_state(steps.Trainable(prompt))], length=1)
    arguments = (np.int32(0), loaded.params, feed, teachers, hypers)
    options: dict[str, Any] = {
        "spec": spec,
        "lanes": fleet.Lanes(),
        "most": unit,
    }
    compiled = fleet.run_steps.lower(states, *arguments, **options).compile()
    counted = costs(compiled.as_text())
    held = compiled.memory_analysis()
    states = [jax.device_put(states)]
    arguments = jax.device_put(arguments)

    def run(count: int) -> None:
        for _ in range(count):
            states[0], _, metrics = compiled(states[0], *arguments)
        jax.block_until_ready((states[0], metrics))

    return turns.Way(
        run,
        outputs,
        {
            "gflop_a_step": round(counted.flops / 1e9, 2),
            "temporary_mib": round(held.temp_size_in_bytes / 2**20, 1),
        },
    )


def _our_outputs(
    params: Any, prompt: Any, teacher: Any, data: Any, hyper: Any, method: str,
    config: Any,
) -> dict[str, Any]:  # fmt: skip
    """Losses and gradients of the first rows, without dropout."""
    import jax

    from panda_jax.step import steps
    from panda_jax.types import Batch

    still = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0)
    first = Batch(*(x[:BATCH] for x in data))
    found, metrics = jax.jit(
        jax.grad(steps.loss_and_metrics, has_aux=True), static_argnames="spec"
    )(
        steps.Trainable(prompt),
        params,
        first,
        None,
        teacher if method != "prompt" else None,
        hyper,
        jax.random.key(0),
        spec=steps.StepSpec(still, "classification"),
    )
    outputs = {
        "task_loss": metrics["task_loss"],
        "vectors": found.prompt.vectors,
        "kernel": found.prompt.head["kernel"],
    }
    if method != "prompt":
        outputs["kd_loss"] = metrics["kd_loss"]
    return outputs


def theirs(folder: str, method: str, unit: int, work: Work) -> turns.Way:
    """A torch step, `unit` steps a call."""
    import torch

    torch.manual_seed(0)
    # XLA does so, too. Once the few rows are learnt, gradients are so small
    # that torch would else slow down.
    torch.set_flush_denormal(True)
    if method == "PEFT prefix":
        step, outputs = _peft(folder, work)
    else:
        step, outputs = _torch(folder, method, work)
    tokens, segments, labels = _on_device(work, ROWS)
    batches = work.batches()

    def run(count: int) -> None:
        for _ in range(count * unit):
            rows = torch.from_numpy(next(batches)).to(tokens.device)
            step(tokens[rows], segments[rows], labels[rows])
        if tokens.is_cuda:
            torch.cuda.synchronize()

    return turns.Way(run, outputs)


def _on_device(work: Work, count: int) -> list[Any]:
    """The first rows where torch computes."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        torch.from_numpy(np.int64(x[:count])).to(device) for x in work.rows()
    ]


def _torch(folder: str, method: str, work: Work) -> tuple[Any, dict[str, Any]]:
    """The released step, the careful one, and that without a teacher."""
    import torch

    released = method == "released"
    student = _classifier(folder, work, STUDENT, eager=released)
    teacher = None
    if method != "torch prompt":
        teacher = _classifier(folder, work, TEACHER, eager=released)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, weight_decay=0.0, fused=not released
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1 - step / 1e6
    )

    def objective(
        tokens: Any, segments: Any, labels: Any
    ) -> tuple[Any, dict[str, Any]]:
        logits = student(tokens, segments)
        task = torch.nn.functional.cross_entropy(logits, labels)
        if teacher is None:
            return task, {"task_loss": task}
        with torch.set_grad_enabled(released):
            taught = teacher(tokens, segments)
        mse = torch.nn.functional.mse_loss(logits, taught)
        return task + WEIGHT * mse, {"task_loss": task, "kd_loss": mse}

    def step(tokens: Any, segments: Any, labels: Any) -> None:
        loss, _ = objective(tokens, segments, labels)
        loss.backward()
        if teacher is not None and released:
            teacher.zero_grad()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    for model in filter(None, (student, teacher)):
        model.eval()
    loss, outputs = objective(*_on_device(work, BATCH))
    loss.backward()
    outputs = {k: _numpy(x) for k, x in outputs.items()}
    outputs["vectors"] = _numpy(student.prefix.grad)
    outputs["kernel"] = _numpy(student.head.weight.grad).T
    optimizer.zero_grad()
    student.train()
    if teacher is not None:
        teacher.zero_grad()
        teacher.train(released)
    if work.compile:
        student = torch.compile(student)
        teacher = teacher and torch.compile(teacher)
    return step, outputs


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().float().numpy().copy()


def _classifier(folder: str, work: Work, seed: int, *, eager: bool) -> Any:
    """BERT with a trained prefix and head; all else is frozen."""
    import torch
    from transformers import BertModel, DynamicCache

    class Classifier(torch.nn.Module):
        """As the release's: dropout on every row's copy of the prefix."""

        def __init__(self) -> None:
            super().__init__()
            vectors, kernel = work.prompt(seed)
            self.bert = BertModel.from_pretrained(
                folder, attn_implementation="eager" if eager else "sdpa"
            ).to(getattr(torch, work.dtype))
            self.bert.requires_grad_(False)
            self.prefix = torch.nn.Parameter(torch.from_numpy(vectors))
            self.head = torch.nn.Linear(work.width, CLASSES)
            self.head.weight.data = torch.from_numpy(kernel.T.copy())
            self.head.bias.data.zero_()
            self.dropout = torch.nn.Dropout(0.1)

        def forward(self, tokens: Any, segments: Any) -> Any:
            """Logits [B, C]."""
            batch = len(tokens)
            places = torch.arange(TEXT, device=tokens.device)[None]
            mask = torch.nn.functional.pad(tokens != 0, (PROMPT, 0), value=True)
            past = self.dropout(self.prefix[:, :, None].expand(
                -1, -1, batch, -1, -1, -1
            )).transpose(3, 4).to(self.bert.dtype)  # fmt: skip
            cache = DynamicCache()
            for layer, (key, value) in enumerate(past):
                cache.update(key, value, layer)
            found = self.bert(
                input_ids=tokens,
                token_type_ids=segments,
                attention_mask=mask.long(),
                position_ids=places + PROMPT,
                past_key_values=cache,
                use_cache=True,
            )
            return self.head(self.dropout(found.pooler_output.float()))

    return Classifier().to("cuda" if torch.cuda.is_available() else "cpu")


def _peft(folder: str, work: Work) -> tuple[Any, dict[str, Any]]:
    """PEFT's prefix on transformers' classifier."""
    import peft
    import torch
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        folder, num_labels=CLASSES
    )
    vectors, kernel = work.prompt(STUDENT)
    model.classifier.weight.data = torch.from_numpy(kernel.T.copy())
    model.classifier.bias.data.zero_()
    wrapped = peft.get_peft_model(
        model,
        peft.PrefixTuningConfig(
            task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=PROMPT
        ),
    )
    weight = wrapped.prompt_encoder["default"].embedding.weight
    # [P, L * 2 * H * K] there.
    flat = vectors.transpose(2, 0, 1, 3, 4).reshape(PROMPT, -1)
    weight.data = torch.from_numpy(flat.copy())
    if torch.cuda.is_available():
        wrapped.cuda()
    if work.dtype != "float32" or work.compile:
        raise ValueError("PEFT's step is there in fp32, uncompiled.")
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, weight_decay=0.0, fused=True
    )

    def loss_of(tokens: Any, segments: Any, labels: Any) -> Any:
        mask = (tokens != 0).long()
        return wrapped(
            input_ids=tokens,
            token_type_ids=segments,
            attention_mask=mask,
            labels=labels,
        ).loss

    def step(tokens: Any, segments: Any, labels: Any) -> None:
        loss_of(tokens, segments, labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    wrapped.eval()
    loss = loss_of(*_on_device(work, BATCH))
    loss.backward()
    grad = weight.grad.reshape(PROMPT, work.layers, 2, work.heads, -1)
    head = wrapped.base_model.classifier.modules_to_save["default"].weight
    outputs = {
        "task_loss": _numpy(loss),
        "vectors": _numpy(grad.permute(1, 2, 0, 3, 4)),
        "kernel": _numpy(head.grad).T,
    }
    optimizer.zero_grad()
    wrapped.train()
    return step, outputs


def main() -> None:
    """Measures every backbone asked for."""
    parser = turns.parser(__doc__)
    parser.add_argument(
        "--backbones", default="random:bert-tiny,minilm-l6,random:bert-base"
    )
    parser.add_argument("--only", default=",".join((*OURS, *THEIRS)))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    import jax

    from panda_jax import load_backbone
    from panda_jax.interop import hf

    results = []
    for name in args.backbones.split(","):
        backbone = load_backbone(name)
        c = backbone.config
        work = Work(
            c.layers, c.heads, c.width, c.vocab_size, args.dtype, args.compile
        )
        # The trainer's ten steps a dispatch take a big one a minute. Of one
        # step a dispatch, getting 2 GiB from the system would be a tenth.
        unit = 10 if c.width < 200 else 2 if c.width < 700 else 4
        ways = args.only.split(",")
        with tempfile.TemporaryDirectory() as folder:
            hf.save(pathlib.Path(folder), backbone.params, c)
            del backbone
            makers = {
                way: (
                    (ours, (name, way, unit, work))
                    if way in OURS
                    else (theirs, (folder, way, unit, work))
                )
                for way in ways
            }
            with_teacher = [x for x in ways if x in (*OURS[:2], *THEIRS[:2])]
            without = [x for x in ways if x not in with_teacher]
            found = turns.measure(
                makers,
                tolerance=2e-3 if args.dtype == "float32" else 1e-1,
                repeats=args.repeats,
                seconds=args.seconds,
                alike=[group for group in (with_teacher, without) if group],
                pairs={
                    k: pair
                    for k, pair in PAIRS.items()
                    if set(pair) <= set(ways)
                },
            )
        results.append({"case": name, "steps_a_run": unit, **found})
        print(results[-1], file=sys.stderr)
    turns.report(results, out=args.out, device=turns.accelerator(jax))


if __name__ == "__main__":
    main()
