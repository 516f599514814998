"""Which metric predicts what a source's prompt is worth to a target?

    python benchmarks/transfer_truth.py --data_dir=DATA --out_dir=DIR

Trains a source prompt a task, then every source x target x seed by vanilla
transfer for one epoch (a fleet a target), scores every pair by every metric and
judges the metrics by the first-epoch scores. Started again it goes on. Nothing
of it is timed. Writes DIR/scores.csv, DIR/truth.csv, DIR/ranking/, and prints
the judgement as JSON.
"""

import argparse
import csv
import json
import pathlib

import panda_jax as pj
from panda_jax.transfer.transfer_metrics import METRICS

SOURCES = "cb,rte,mrpc,cola,stsb,sst2,copa,wic,conll04"
TARGETS = "cb,rte,mrpc,cola,stsb"
COMBINED = ("e_avg+on+panda", "e_avg+on+panda+1.5*prior")


def main() -> None:
    """Trains what is missing, scores, judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out_dir", required=True, type=pathlib.Path)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--sources", default=SOURCES)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--source_rows", type=int, default=800)
    parser.add_argument("--source_epochs", type=int, default=3)
    parser.add_argument("--target_rows", type=int, default=600)
    parser.add_argument("--eval_rows", type=int, default=300)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-2)
    args = parser.parse_args()
    backbone = pj.load_backbone(args.backbone)
    shared = {
        "max_length": args.max_length,
        "learning_rate": args.learning_rate,
        "eval_examples": args.eval_rows,
        "dropout": 0.0,
    }
    bank = {}
    for task in args.sources.split(","):
        bank[task] = pj.train(
            backbone,
            task=task,
            method="prompt",
            train_examples=args.source_rows,
            epochs=args.source_epochs,
            model_dir=args.out_dir / "sources" / task,
            data_dir=args.data_dir,
            **shared,
        ).prompt
        print(task, bank[task].info.scores, flush=True)
    rows = []
    for target in args.targets.split(","):
        lanes = {
            f"{target}-{source}-{seed}": {
                "task": target,
                "method": "pot",
                "source": prompt,
                "seed": seed,
                "train_examples": args.target_rows,
                "epochs": 1,
                **shared,
            }
            for source, prompt in bank.items()
            for seed in range(args.seeds)
        }
        done = pj.train_fleet(
            backbone,
            lanes,
            out_dir=args.out_dir / "transfers" / target,
            data_dir=args.data_dir,
        )
        for name, result in done.items():
            if isinstance(result, Exception):
                print(f"{name} to {target} left out: {result}", flush=True)
                continue
            _, source, seed = name.split("-")
            value = result.result["first_epoch"]["value"]
            rows.append((source, target, value, seed))
            print(*rows[-1], flush=True)
    truth = args.out_dir / "truth.csv"
    with truth.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("source", "target", "score", "seed"), *rows])
    scores = pj.score(
        sources=bank,
        targets={name: bank[name] for name in args.targets.split(",")},
        metrics=tuple(METRICS),
        backbone=backbone,
        data_dir=args.data_dir,
        max_length=args.max_length,
    )
    scores.to_csv(args.out_dir / "scores.csv")
    report = pj.evaluate_ranking(scores, truth=truth, combine=COMBINED)
    report.write(args.out_dir / "ranking")
    found = {
        metric: dict(zip(("value", "low", "high"), interval, strict=True))
        for metric in (*METRICS, *COMBINED)
        for interval in [_interval(report, metric)]
    }
    print(json.dumps({"arguments": vars(args), "spearman": found}, default=str))


def _interval(report: object, metric: str) -> tuple[float, float, float]:
    found = report.get(metric, "spearman")
    return found.value, found.low, found.high


if __name__ == "__main__":
    main()
