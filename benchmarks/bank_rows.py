"""Is a bank scored on real rows faster than before?

    python benchmarks/bank_rows.py --data_dir=DATA --before=PYTHON:CHECKOUT \
        --out=FILE.json

A bank of 100 random deep prompts of 20, of five tasks, each read on 100 real
training rows of its own task: `panda_jax.score` of all pairs by metric panda,
from the prompts' folders, without its cache. Ours and an earlier build, which
PYTHON runs with CHECKOUT imported, in turn; each has scored the bank once
before, so that nothing is compiled. Compared first: the scores, to 1e-4.

Without `--before` ours alone is timed. `rows` are those that the backbone reads
in a call, `tokens` their pieces. `--backbone` and `--vocabulary` are as in
`real_rows.py`, and so is `--fill`.
"""

import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import real_rows
import turns
from real_rows import BEFORE, DEEP, MAX_LENGTH, OURS

TASKS = "cb,rte,cola,mrpc,sst2"
TOLERANCE = 1e-4


def written(
    folder: pathlib.Path, backbone: Any, tasks: Sequence[str], prompts: int
) -> None:
    """Random deep prompts, the tasks by turns."""
    import panda_jax as pj

    c = backbone.config
    rng = np.random.default_rng(0)
    for number in range(prompts):
        shape = (c.layers, 2, DEEP, c.heads, c.head_dim)
        vectors = rng.normal(size=shape).astype(np.float32)
        info = sys.modules[pj.StoredPrompt.__module__].PromptInfo(
            task=tasks[number % len(tasks)],
            backbone=backbone.id,
            fingerprint=backbone.fingerprint,
            kind="deep",
            method="prompt",
            max_length=MAX_LENGTH,
        )
        place = folder / f"p{number:04d}"
        pj.save_prompt(place, pj.Prompt(vectors, {}), info)


def scored(
    folder: str, tasks: Sequence[str], prompts: int, given: Mapping[str, Any]
) -> turns.Way:
    """This build's scores of a bank that it writes to a folder."""
    import panda_jax as pj

    backbone = pj.load_backbone(given["backbone"], dtype=given["dtype"])
    written(pathlib.Path(folder), backbone, tasks, prompts)

    def score() -> Any:
        bank = pj.PromptBank(folder)
        return pj.score(
            sources=bank,
            targets=bank,
            metrics=("panda",),
            backbone=backbone,
            data_dir=given["data_dir"],
            examples=given["rows"],
            cached=False,
        )

    def run(count: int) -> None:
        for _ in range(count):
            score()

    outputs = {"scores": np.asarray(score().values["panda"])}
    return turns.Way(run, outputs)


def main() -> None:
    """Times both builds and writes a JSON file."""
    flags = real_rows.flags_of(__doc__)
    flags.set_defaults(tasks=TASKS, rows=100)
    flags.add_argument("--prompts", type=int, default=100)
    args = real_rows.read(flags)
    builds: dict[str, turns.Build | None] = {OURS: None}
    if args.before is not None:
        builds[BEFORE] = args.before
    with tempfile.TemporaryDirectory() as folder:
        made = real_rows.files(folder, args)
        if args.fill:
            return
        own = (args.tasks, args.prompts, real_rows.given_of(args, made))
        makers = {
            name: (scored, (f"{folder}/{name}", *own), build)
            for name, build in builds.items()
        }
        with turns.started(makers) as workers:
            differences = turns.differences_of(workers, TOLERANCE)
            once = dict.fromkeys(workers, 1)
            taken = turns.in_turn(workers, once, args.rounds)
    views = [made["tasks"][task]["train"] for task in args.tasks]
    read = [views[number % len(views)] for number in range(args.prompts)]
    rows = sum(map(len, read))
    pairs = {f"{BEFORE} / {OURS}": (OURS, BEFORE)} if args.before else {}
    case = {
        "case": f"{args.backbone}, {args.prompts} prompts",
        "tasks": args.tasks,
        "rows": rows,
        "tokens": sum(real_rows.tokens_of(item) for x in read for item in x),
        "rows_a_second": {
            name: turns.spread([rows / x for x in seconds])
            for name, seconds in taken.items()
        },
        "seconds": {name: turns.spread(x) for name, x in taken.items()},
        "ratio": turns.ratios(taken, pairs),
        "differences": differences,
    }
    turns.report(
        [case],
        out=args.out,
        device=made["device"],
        hidden=real_rows.HIDDEN,
        builds=real_rows.builds_of(args),
    )


if __name__ == "__main__":
    main()
