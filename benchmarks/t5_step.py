"""Is a prompt-tuning step of T5-small faster than T5X + prompt-tuning's?

    python benchmarks/t5_step.py --t5x=DIR --prompt_tuning=DIR \
        --flaxformer=DIR --out=FILE.json

T5 1.1 small, batch 16, 128 input and 8 target tokens, a shallow prompt of 20
and of 100 vectors, on a CPU, fp32, dropout 0.1 as each project draws it:

- ours: `fleet.run_steps` with one lane, as the trainer calls it: rows on the
  device, ten steps a dispatch if `--seconds` leaves room for them, Adafactor.
- t5x: T5X's `train_with_lr`, jitted with its state donated, of what
  prompt-tuning's `t5_1_1_small_prompt.gin` makes: Flaxformer with one-hot
  embeddings, z-loss, T5X's Adafactor in a MultiOptimizer. Learning rate,
  dropout rate and random numbers (`unsafe_rbg`) are those of its fine-tuning;
  its activations are bf16 there, fp32 here. A step a dispatch, rows on the
  device; metrics are made, but not summed up over steps.
- t5x bf16: the same with activations as configured there. Its loss is told,
  its gradient not compared.
- peft: PROMPT_TUNING on transformers' T5, its attention left to transformers,
  with torch's AdamW, the optimizer of PEFT's examples.

Before anything is timed the cross-entropy of a target token and its gradient
for the prompt are compared, without dropout, with the same weights, prompt and
rows. T5X sums the loss over tokens: here it is divided by their number, and
z-loss is 0 in the comparison.

The peers run as they are; T5X + prompt-tuning from folders of their sources,
and not at all unless the three are given. Mocks stand for what they import that
does not go with current JAX and that the step does not compute with: `airio`
(another data library), `aqt` (quantised layers), `chex` (asserts shapes while
tracing), `jestimator` (another optimizer), `flax.optim` (gone from Flax; for a
class that the gin file does not name). `cached_property` is `functools`.
"""

import dataclasses
import functools
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from turns import Way, measure, parser, report

from panda_jax import models
from panda_jax.interop import hf
from panda_jax.models import t5
from panda_jax.models.trees import flatten
from panda_jax.planning import hlo
from panda_jax.prompts import Prompt
from panda_jax.step import fleet, steps
from panda_jax.step.fleet import Feed, Lanes
from panda_jax.step.steps import Hyper, StepSpec, Trainable
from panda_jax.training.step_inputs import MOST_STEPS
from panda_jax.types import Batch

MODEL = "t5_1_1-small"
GIN = "prompt_tuning/configs/models/t5_1_1_small_prompt.gin"
BATCH, INPUTS, TARGETS = 16, 128, 8
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 0.3, 1e-5, 0.1
T5X = {"t5x": "float32", "t5x bf16": "bfloat16"}
FOLDERS = ("t5x", "prompt_tuning", "flaxformer")
MOCKED = (
    "airio",
    "airio.core",
    "aqt.jax_legacy.jax",
    "chex",
    "flax.optim",
    "jestimator",
)
# Relative to the largest number; fp32 sums in another order differ by 1e-5.
TOLERANCE = 2e-3


def rows(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [*shape, T] and targets [*shape, U] int32, 0 where padded."""
    rng = np.random.default_rng(0)

    def texts(length: int) -> np.ndarray:
        ids = rng.integers(2, 32000, (*shape, length), dtype=np.int32)
        real = rng.integers(length // 2, length + 1, (*shape, 1))
        return np.where(np.arange(length) < real, ids, 0)

    return texts(INPUTS), texts(TARGETS)


def start(length: int) -> np.ndarray:
    """The prompt [P, D] that each way begins with."""
    shape = (length, models.config(MODEL).width)
    rng = np.random.default_rng(1)
    return rng.uniform(0, 0.5, shape).astype(np.float32)


def facts(compiled: jax.stages.Compiled) -> dict[str, float]:
    """FLOPs and memory of a compiled step.

    `gflop_per_step` is of the products in XLA's optimized program, for one step
    of a dispatch and every turn of a loop over layers. `gflop_by_xla` is XLA's
    own count, which has more operations, and the body of a loop once.
    """
    memory: Any = compiled.memory_analysis()
    costs: Any = compiled.cost_analysis()
    flops = hlo.costs(compiled.as_text()).flops
    return {
        "gflop_per_step": round(flops / 1e9, 1),
        "gflop_by_xla": round(costs["flops"] / 1e9, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def ours(folder: pathlib.Path, length: int) -> Way:
    """Our step."""
    params, config = hf.load_t5(folder)
    # Layers one by one, as `Assembly` has them on a CPU.
    config = dataclasses.replace(config, dropout=DROPOUT, unroll=True)
    spec = StepSpec(config=config, kind="text", optimizer="adafactor")
    inputs, targets = rows(MOST_STEPS * BATCH)
    batch = Batch(inputs, np.zeros_like(inputs), targets)
    trainable = Trainable(Prompt(jnp.asarray(start(length)), {}))
    hyper = Hyper(
        learning_rate=np.float32(LEARNING_RATE),
        weight_decay=np.float32(WEIGHT_DECAY),
        total_steps=np.float32(np.inf),
        kd_weight=np.float32(0),
        key=jax.random.key(0),
    )
    state = steps.init_state(trainable, optimizer=spec.optimizer)
    states, hypers = (fleet.stack([x], length=1) for x in (state, hyper))
    ends = list(np.arange(MOST_STEPS + 1, dtype=np.int32))
    order = np.arange(len(inputs)).reshape(MOST_STEPS, 1, BATCH)
    feed = Feed(batch, None, np.int32(order), first=ends[0], last=ends[0])
    ends, frozen, feed, hypers = jax.device_put((ends, params, feed, hypers))
    static = {"spec": spec, "lanes": Lanes(), "most": MOST_STEPS}
    compiled = fleet.run_steps.lower(
        states, ends[0], frozen, feed, None, hypers, **static
    ).compile()

    def run(count: int) -> None:
        nonlocal states
        for done in range(0, count, MOST_STEPS):
            part = feed._replace(last=ends[min(count - done, MOST_STEPS)])
            states, _, metrics = compiled(
                states, ends[0], frozen, part, None, hypers
            )
            jax.device_get(metrics)

    still = dataclasses.replace(config, dropout=0.0)
    loss_of = functools.partial(
        steps.loss_and_metrics, spec=dataclasses.replace(spec, config=still)
    )
    one = jax.tree.map(lambda x: x[:BATCH], batch)
    (loss, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        trainable, frozen, one, None, None, hyper, hyper.key
    )
    outputs = {"loss": loss, "gradient": gradient.prompt.vectors}
    return Way(run, outputs, facts(compiled))


def peer(folders: Mapping[str, str]) -> Callable[..., Any]:
    """Lets T5X, and what it needs, be imported.

    Returns:
      A function of gin bindings that makes prompt-tuning's model.
    """
    sys.path[:0] = folders.values()
    sys.modules |= {name: mock.MagicMock() for name in MOCKED}
    sys.modules["cached_property"] = functools
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    import gin

    gin.add_config_file_search_path(folders["prompt_tuning"])

    @gin.configurable
    def made(model: Any) -> Any:
        return model

    def model_of(*bindings: str) -> Any:
        gin.clear_config()
        bindings = (*bindings, "made.model = %MODEL")
        gin.parse_config_files_and_bindings([GIN], bindings)
        return made()

    return model_of


def t5x_params(params: Any, like: Any, prompt: np.ndarray) -> Any:
    """Our parameters in T5X's tree: layers apart, and the prompt in it."""
    ours = flatten(params)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = "/".join(part.key for part in path)
        layer = re.search(r"layers_(\d+)", name)
        if name.endswith("/prompt"):
            value = prompt
        elif layer:
            value = ours[name.replace(layer[0], "layers")][int(layer[1])]
        else:
            value = ours[name]
        assert value.shape == shape.shape, name
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(leaf, like)


def t5x_batch(inputs: np.ndarray, targets: np.ndarray) -> dict[str, jax.Array]:
    """Rows as T5X's feature converter makes them."""
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return jax.device_put(
        {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": shifted,
            "decoder_target_tokens": targets,
            "decoder_loss_weights": np.int32(targets != 0),
        }
    )


def t5x(
    folder: pathlib.Path,
    length: int,
    folders: Mapping[str, str],
    dtype: str,
    data: tuple[np.ndarray, np.ndarray] | None = None,
) -> Way:
    """T5X's step of prompt-tuning's configuration.

    Args:
      folder: of the weights, as transformers has them.
      length: of the prompt.
      folders: of the peers' sources.
      dtype: of the activations.
      data: inputs [S, B, T] and targets [S, B, U] of S batches; by default
        those of `rows`.
    """
    model_of = peer(folders)
    import t5x.train_state
    import t5x.trainer
    import t5x.utils

    t5x.utils.set_hardware_rng_ops()
    key = jax.random.PRNGKey(0)
    bindings = (
        f"PROMPT_LENGTH = {length}",
        f"DROPOUT_RATE = {DROPOUT}",
        f"ACTIVATION_DTYPE = '{dtype}'",
    )
    model = model_of(*bindings)
    batches = list(map(t5x_batch, *(data or rows(MOST_STEPS, BATCH))))
    variables = jax.eval_shape(
        functools.partial(
            model.get_initial_variables,
            input_shapes={k: x.shape for k, x in batches[0].items()},
            input_types={k: x.dtype for k, x in batches[0].items()},
        ),
        key,
    )
    params = t5x_params(
        hf.load_t5(folder)[0], variables["params"], start(length)
    )
    state = t5x.train_state.FlaxOptimTrainState.create(
        model.optimizer_def, variables.copy({"params": params})
    )

    rate = jnp.float32(LEARNING_RATE)

    def step(state: Any, batch: Any) -> Any:
        now = jax.random.fold_in(key, state.step)
        return t5x.trainer.train_with_lr(state, batch, rate, now, model, None)

    loss_of = jax.value_and_grad(
        model_of(*bindings, "Z_LOSS = 0.0").loss_fn, has_aux=True
    )
    (loss, _), gradient = jax.jit(loss_of, static_argnums=2)(
        params, batches[0], None
    )
    tokens = batches[0]["decoder_loss_weights"].sum()
    found = gradient["encoder"]["prompt"]["prompt"]["prompt"]
    outputs = {"loss": loss / tokens, "gradient": found / tokens}
    jitted = jax.jit(step, donate_argnums=0)
    compiled = jitted.lower(state, batches[0]).compile()

    def run(count: int) -> None:
        nonlocal state
        for number in range(count):
            state, _ = compiled(state, batches[number % len(batches)])
        jax.block_until_ready(state)

    told = {"loss": round(float(outputs["loss"]), 4)}
    return Way(run, outputs, facts(compiled) | told)


def peft(folder: pathlib.Path, length: int) -> Way:
    """PEFT's step."""
    import torch
    import transformers
    from peft import PromptTuningConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    # As XLA does; else tiny gradients slow torch down.
    torch.set_flush_denormal(True)
    model = get_peft_model(
        transformers.T5ForConditionalGeneration.from_pretrained(folder),
        PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=length,
            num_transformer_submodules=1,
        ),
    )
    prompt = model.prompt_encoder["default"].embedding.weight
    prompt.data = torch.from_numpy(start(length))
    optimizer = torch.optim.AdamW(
        [prompt], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    inputs, targets = (
        torch.from_numpy(x).long() for x in rows(MOST_STEPS, BATCH)
    )

    def backward(number: int) -> torch.Tensor:
        x, y = inputs[number % MOST_STEPS], targets[number % MOST_STEPS]
        labels = y.masked_fill(y == 0, -100)
        optimizer.zero_grad()
        loss = model(input_ids=x, attention_mask=x != 0, labels=labels).loss
        loss.backward()
        return loss.detach()

    def run(count: int) -> None:
        for number in range(count):
            backward(number)
            optimizer.step()

    model.eval()
    outputs = {"loss": backward(0), "gradient": prompt.grad}
    outputs = {name: x.numpy() for name, x in outputs.items()}
    model.train()
    with FlopCounterMode(display=False) as counter:
        backward(0)
    gflop = round(counter.get_total_flops() / 1e9, 1)
    return Way(run, outputs, {"gflop_per_step": gflop})


def main() -> None:
    """Times the ways and writes a JSON file."""
    flags = parser(__doc__)
    # Of less, ours would not have whole dispatches.
    flags.set_defaults(seconds=30.0)
    for name in FOLDERS:
        flags.add_argument(f"--{name}", help="folder of its sources")
    flags.add_argument("--lengths", default="20,100", help="of the prompt")
    args = flags.parse_args()
    folders = {name: getattr(args, name) for name in FOLDERS}
    whole = all(folders.values())
    results = []
    with tempfile.TemporaryDirectory() as place:
        folder, config = pathlib.Path(place), models.config(MODEL)
        assert isinstance(config, t5.T5Config)
        params = nn.meta.unbox(t5.init(jax.random.key(0), config))
        hf.save(folder, params, config)
        for length in map(int, args.lengths.split(",")):
            makers: dict[str, Any] = {"ours": (ours, (folder, length))}
            if whole:
                for name, dtype in T5X.items():
                    makers[name] = (t5x, (folder, length, folders, dtype))
            makers["peft"] = (peft, (folder, length))
            found = measure(
                makers,
                tolerance=TOLERANCE,
                repeats=args.repeats,
                seconds=args.seconds,
                alike=[[name for name in makers if name != "t5x bf16"]],
            )
            case = f"{MODEL}, prompt of {length}"
            left_out = [] if whole else list(T5X)
            results.append({"case": case, "left_out": left_out, **found})
    report(results, out=args.out, hidden=FOLDERS)


if __name__ == "__main__":
    main()
