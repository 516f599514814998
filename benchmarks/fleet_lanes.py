"""Is a step of 21 lanes faster than 21 steps of one, and in what chunks?

    python benchmarks/fleet_lanes.py --out=FILE.json
    python benchmarks/fleet_lanes.py --dtype=bfloat16 --peak --out=FILE.json \
        --backbones=random:bert-tiny,random:bert-large,random:t5_1_1-large

The paper's 21 sources on one target: batches of 16 texts of 128 pieces, PANDA;
on BERT deep prompts of 20 with cached teachers, on T5 shallow prompts of 100
with the teacher in the step, and targets of 8 pieces. `fleet C` computes C
lanes at a time (`fleet.Lanes`), all in one dispatch; `solo` has one lane's
step, compiled once, and dispatches it for each lane in turn; `solo, long` does
so with 20 times as many steps a dispatch, which leaves nearly no work to the
host. All are warm; what a fleet saves by compiling and loading once is in
`fleet_whole.py`. Compared first, with dropout: the prompts after the first
steps (but for `solo, long`, which has done more of them).

`--peak`, for an accelerator, adds the product of two large matrices of the
type: `utilisation` of a way is the FLOPs of one lane's step without anything
computed twice, times lanes and steps, over its seconds and that product's rate.
`--dtype=bfloat16` is how a backbone is held there.
"""

import dataclasses
import sys
from typing import Any

import numpy as np
import turns
from bert_step import CLASSES, RATE, ROWS, WEIGHT, Work

SOLO, LONG, PEAK = "solo", "solo, long", "matrix product"
# Rows and columns of the peak's matrices, and the shapes of T5's work.
SIDE, SHALLOW, TARGETS = 8192, 100, 8
# As many times the steps a dispatch.
LONG_TIMES = 20


def ways(
    backbone: str, chunk: int, lanes: int, unit: int, work: Work, dtype: str
) -> turns.Way:
    """All lanes by `unit` steps; chunk 0 is one lane after another."""
    import jax

    from panda_jax import load_backbone
    from panda_jax.planning.hlo import costs
    from panda_jax.prompts import Prompt
    from panda_jax.step import fleet, steps
    from panda_jax.types import Batch

    loaded = load_backbone(backbone, dtype=dtype)
    text = loaded.text_to_text
    changes = {"dropout": 0.1, "unroll": jax.default_backend() == "cpu"}
    if not text:
        changes["attention_dropout"] = 0.1
    config = dataclasses.replace(loaded.config, **changes)
    order = np.stack([next(each) for each in [work.batches()] * unit])
    rng = np.random.default_rng(3)
    tokens, segments, labels = work.rows()
    if text:
        labels = rng.integers(2, work.vocabulary, (ROWS, TARGETS))
    data = Batch(tokens, segments, np.int32(labels))

    def prompt(lane: int) -> Prompt:
        if text:
            made = np.random.default_rng(lane)
            vectors = made.uniform(0, 0.5, (SHALLOW, work.width))
            return Prompt(np.float32(vectors), {})
        vectors, kernel = work.prompt(lane)
        head = {"kernel": kernel, "bias": np.zeros(CLASSES, np.float32)}
        return Prompt(vectors, head)

    def state(lane: int) -> steps.TrainState:
        return steps.init_state(steps.Trainable(prompt(lane)))

    def hyper(lane: int) -> steps.Hyper:
        return steps.Hyper(
            learning_rate=np.float32(RATE),
            weight_decay=np.float32(0),
            total_steps=np.float32(1e6),
            kd_weight=np.float32(WEIGHT),
            key=jax.random.key(lane),
        )

    taught = rng.normal(size=(lanes, ROWS, CLASSES)).astype(np.float32)
    each = [[lane] for lane in range(lanes)]
    groups = each if chunk == 0 else [list(range(lanes))]
    states, arguments = [], []
    for group in groups:
        count = len(group)
        states.append(
            jax.device_put(
                fleet.stack([state(lane) for lane in group], length=count)
            )
        )
        feed = fleet.Feed(
            data,
            None if text else taught[group],
            np.int32(np.repeat(order[:, None], count, axis=1)),
            np.int32(0),
            np.int32(unit),
        )
        hypers = fleet.stack([hyper(lane) for lane in group], length=count)
        teachers = None
        if text:
            teachers = fleet.stack(
                [prompt(lane + lanes) for lane in group], length=count
            )
        given = (np.int32(0), loaded.params, feed, teachers, hypers)
        arguments.append(jax.device_put(given))
    compiled = fleet.run_steps.lower(
        states[0],
        *arguments[0],
        spec=steps.StepSpec(config, "text" if text else "classification"),
        lanes=fleet.Lanes(chunk=max(1, chunk)),
        most=unit,
    ).compile()

    def run(count: int) -> None:
        for _ in range(count):
            for number, given in enumerate(arguments):
                states[number], _, metrics = compiled(states[number], *given)
        jax.block_until_ready((states, metrics))

    run(1)
    held = compiled.memory_analysis()
    prompts = [s.trainable.prompt.vectors for s in states]
    facts: dict[str, Any] = {
        "gflop_a_step": round(costs(compiled.as_text()).flops / 1e9, 2),
        "temporary_mib": round(held.temp_size_in_bytes / 2**20, 1),
        "mib_a_lane_at_rest": round(
            _bytes(states[0]) / len(groups[0]) / 2**20, 3
        ),
    }
    return turns.Way(run, {"vectors": np.concatenate(prompts)}, facts)


def product(dtype: str) -> turns.Way:
    """A product of two large matrices."""
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE)).astype(dtype)
    multiply = jax.jit(lambda x, y: jnp.matmul(x, y) / SIDE)

    def run(count: int) -> None:
        found = x
        for _ in range(count):
            found = multiply(found, x)
        jax.block_until_ready(found)

    return turns.Way(run, facts={"gflop": 2 * SIDE**3 / 1e9})


def _utilisation(found: dict[str, Any], lanes: int, unit: int) -> None:
    """Adds each way's share of the product's rate to its facts."""
    facts, seconds = found["facts"], found["seconds"]
    peak = facts[PEAK]["gflop"] / seconds[PEAK]["median"]
    facts[PEAK]["gflop_a_second"] = round(peak)
    needed = facts[SOLO]["gflop_a_step"] * lanes * unit
    for name in set(facts) - {PEAK}:
        more = LONG_TIMES if name == LONG else 1
        rate = needed * more / seconds[name]["median"]
        facts[name]["utilisation"] = round(rate / peak, 3)


def _bytes(tree: Any) -> int:
    """Of a tree's arrays but for its keys."""
    import jax

    return sum(x.nbytes for x in jax.tree.leaves(tree))


def main() -> None:
    """Measures both backbones."""
    parser = turns.parser(__doc__)
    parser.add_argument("--backbones", default="random:bert-tiny,minilm-l6")
    parser.add_argument("--lanes", type=int, default=21)
    parser.add_argument("--chunks", default="1,3,21")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--unit", type=int, default=0)
    parser.add_argument("--peak", action="store_true")
    args = parser.parse_args()
    import jax

    from panda_jax import load_backbone

    results = []
    for name in args.backbones.split(","):
        c = load_backbone(name).config
        work = Work(c.layers, c.heads, c.width, c.vocab_size)
        # Of one step a dispatch, getting memory from the system would count,
        # which the trainer's ten share.
        unit = args.unit or (10 if c.width < 200 else 5)
        chunks = [int(word) for word in args.chunks.split(",")]
        given = (args.lanes, unit, work, args.dtype)
        makers = {f"fleet {n}": (ways, (name, n, *given)) for n in chunks}
        makers[SOLO] = (ways, (name, 0, *given))
        lane_ways = list(makers)
        pairs = {f"{SOLO} / {way}": (way, SOLO) for way in makers}
        if args.peak:
            more = (args.lanes, LONG_TIMES * unit, work, args.dtype)
            makers[LONG] = (ways, (name, 0, *more))
            makers[PEAK] = (product, (args.dtype,))
            pairs[f"{SOLO} / {LONG}"] = (LONG, SOLO)
        found = turns.measure(
            makers,
            alike=[lane_ways],
            # Steps of Adam from other roundings.
            tolerance=1e-2 if args.dtype == "float32" else 1e-1,
            repeats=args.repeats,
            seconds=args.seconds,
            pairs=pairs,
        )
        if args.peak:
            # Of as many steps: above 1 by what the host takes.
            ratio = found["ratio"][f"{SOLO} / {LONG}"]
            for key in ("median", "low", "high"):
                ratio[key] = float(f"{ratio[key] * LONG_TIMES:.4g}")
            _utilisation(found, args.lanes, unit)
        results.append({"case": name, "steps_a_run": unit, **found})
        print(results[-1], file=sys.stderr)
    turns.report(results, out=args.out, device=turns.accelerator(jax))


if __name__ == "__main__":
    main()
