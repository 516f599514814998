"""Is a step of 21 lanes faster than 21 steps of one, and in what chunks?

    python benchmarks/fleet_lanes.py --out=FILE.json

The paper's 21 sources on one target: deep prompts of 20, batches of 16 texts of
128 pieces, PANDA with cached teachers. `fleet C` computes C lanes at a time
(`fleet.Lanes`), all in one dispatch; `solo` has one lane's step, compiled once,
and dispatches it for each lane in turn. Both are warm; what a fleet saves by
compiling and loading once is in `fleet_whole.py`. Compared first, with dropout:
the prompts after the first steps.

On an accelerator, `--dtype=bfloat16` is how a backbone is held there.
"""

import dataclasses
import sys
from typing import Any

import numpy as np
import turns
from bert_step import CLASSES, RATE, ROWS, WEIGHT, Work

SOLO = "solo"


def ways(
    backbone: str, chunk: int, lanes: int, unit: int, work: Work, dtype: str
) -> turns.Way:
    """All lanes by `unit` steps; chunk 0 is one lane after another."""
    import jax

    from panda_jax import fleet, load_backbone, steps
    from panda_jax.hlo import costs
    from panda_jax.prompts import Prompt
    from panda_jax.types import Batch

    loaded = load_backbone(backbone, dtype=dtype)
    config = dataclasses.replace(
        loaded.config,
        dropout=0.1,
        attention_dropout=0.1,
        unroll=jax.default_backend() == "cpu",
    )
    order = np.stack([next(each) for each in [work.batches()] * unit])
    data = Batch(*work.rows())
    rng = np.random.default_rng(3)

    def state(lane: int) -> steps.TrainState:
        vectors, kernel = work.prompt(lane)
        head = {"kernel": kernel, "bias": np.zeros(CLASSES, np.float32)}
        return steps.init_state(steps.Trainable(Prompt(vectors, head)))

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
            taught[group],
            np.int32(np.repeat(order[:, None], count, axis=1)),
            np.int32(0),
            np.int32(unit),
        )
        hypers = fleet.stack([hyper(lane) for lane in group], length=count)
        arguments.append(
            jax.device_put((np.int32(0), loaded.params, feed, None, hypers))
        )
    compiled = fleet.run_steps.lower(
        states[0],
        *arguments[0],
        spec=steps.StepSpec(config, "classification"),
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
    args = parser.parse_args()
    import jax

    from panda_jax import load_backbone

    results = []
    for name in args.backbones.split(","):
        c = load_backbone(name).config
        work = Work(c.layers, c.heads, c.width, c.vocab_size)
        unit = args.unit or (10 if c.width < 200 else 1)
        chunks = [int(word) for word in args.chunks.split(",")]
        given = (args.lanes, unit, work, args.dtype)
        makers = {f"fleet {n}": (ways, (name, n, *given)) for n in chunks}
        makers[SOLO] = (ways, (name, 0, *given))
        found = turns.measure(
            makers,
            # Steps of Adam from other roundings.
            tolerance=1e-2 if args.dtype == "float32" else 1e-1,
            repeats=args.repeats,
            seconds=args.seconds,
            pairs={f"{SOLO} / {way}": (way, SOLO) for way in makers},
        )
        results.append({"case": name, "steps_a_run": unit, **found})
        print(results[-1], file=sys.stderr)
    turns.report(results, out=args.out, device=turns.accelerator(jax))


if __name__ == "__main__":
    main()
