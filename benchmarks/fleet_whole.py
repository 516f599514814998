"""Are 21 runs sooner done as a fleet, from the command to the results?

    python benchmarks/fleet_whole.py --out=FILE.json

One process that trains 21 lanes (`train_fleet`) against 21 times `panda-jax
train`, one after another: starting Python, loading, compiling, training, and
evaluating included. The first start of all fills the caches of tokens and of
compiled programs and is not timed, so that both sides find them as every start
but a user's first does; `--cold` gives every measurement empty caches. The runs
are PANDA's, the teacher a prompt of the same task, with as many seeds as lanes.
Compared first: the scores.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import turns

FLEET = """
import sys, panda_jax as pj
backbone, source, lanes, folder, *rest = sys.argv[1:]
shared = dict(word.split("=") for word in rest)
shared = {k: int(v) if v.isdigit() else v for k, v in shared.items()}
pj.train_fleet(
    backbone,
    {f"lane{n}": {"method": "panda", "source": source, "seed": n, **shared}
     for n in range(int(lanes))},
    out_dir=folder, quiet=True,
)
"""


def _scores(folder: pathlib.Path, lanes: int) -> list[float]:
    return [
        json.loads((folder / f"lane{n}" / "result.json").read_text())["best"]
        for n in range(lanes)
    ]


def main() -> None:
    """Times both ways in turn."""
    parser = turns.parser(__doc__)
    parser.add_argument("--backbones", default="random:bert-tiny,minilm-l6")
    parser.add_argument("--lanes", type=int, default=21)
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    shared = {
        "task": "toy_review",
        "steps": 20,
        "max_length": 64,
        "eval_examples": 64,
    }
    results = []
    for name in args.backbones.split(","):
        with tempfile.TemporaryDirectory() as place:
            results.append(_case(name, pathlib.Path(place), shared, args))
        print(results[-1], file=sys.stderr)
    turns.report(results, out=args.out)


def _case(
    backbone: str, root: pathlib.Path, shared: dict, args: object
) -> dict:
    """Both ways on one backbone."""
    flags = [f"--{name}={value}" for name, value in shared.items()]
    caches = root / "caches"

    def start(*command: str) -> None:
        environment = os.environ | {"PANDA_CACHE_DIR": str(caches)}
        subprocess.run(
            [sys.executable, *command],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def train(folder: pathlib.Path, *more: str) -> None:
        start(
            "-m", "panda_jax", "train", f"--backbone={backbone}",
            f"--model_dir={folder}", *flags, *more,
        )  # fmt: skip

    source = root / "source"
    train(source, "--method=prompt")

    def fleet(folder: pathlib.Path) -> None:
        words = [f"{name}={value}" for name, value in shared.items()]
        given = (backbone, str(source), str(args.lanes), str(folder))
        start("-c", FLEET, *given, *words)

    def alone(folder: pathlib.Path) -> None:
        for lane in range(args.lanes):
            train(
                folder / f"lane{lane}", "--method=panda",
                f"--source={source}", f"--seed={lane}",
            )  # fmt: skip

    ways = {"fleet": fleet, "one after another": alone}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for repeat in range(args.repeats + 1):
        for name in ways if repeat % 2 else reversed(ways):
            if args.cold and caches.exists():
                caches.rename(root / f"old-{name}-{repeat}")
            folder = root / f"{name}-{repeat}"
            before = time.perf_counter()
            ways[name](folder)
            if repeat or args.cold:
                taken[name].append(time.perf_counter() - before)
            found[name] = _scores(folder, args.lanes)
    if found["fleet"] != found["one after another"]:
        raise SystemExit(f"Not the same work: {found}")
    pairs = zip(taken["fleet"], taken["one after another"], strict=True)
    return {
        "case": backbone + (", cold" if args.cold else ""),
        "lanes": args.lanes,
        "settings": shared,
        "seconds": {name: turns.spread(x) for name, x in taken.items()},
        "ratio": {"one after another": turns.spread([y / x for x, y in pairs])},
    }


if __name__ == "__main__":
    main()
