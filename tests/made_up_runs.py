"""Run folders as training leaves them, with made-up scores."""

import itertools
import json
import pathlib
from typing import Any

import numpy as np

SOURCES = ("mnli", "sst2", "squad")
TARGETS = ("cb", "rte", "toy_review")
SEEDS = (0, 1, 2)
_NUMBERS = itertools.count()


def write_run(
    root: pathlib.Path,
    folder: str,
    *,
    value: Any,
    task: str = "cb",
    method: str = "prompt",
    seed: int = 0,
    source: str | None = None,
    recipe: str | None = None,
    kd_weight: float = 0.0,
    transfer_metric: str | None = None,
    backbone: str = "bert-tiny",
    run_id: str | None = None,
    settings: dict[str, Any] | None = None,
    needs: dict[str, Any] | None = None,
    **changes: Any,
) -> pathlib.Path:
    """A run that is done; `changes` are put into its result."""
    if method == "panda":
        recipe = recipe or "paper"
    run_id = run_id or f"{task}-{method}-s{seed}-{next(_NUMBERS):010x}"
    describe(
        root,
        folder,
        run_id=run_id,
        needs=needs,
        settings={
            "task": task,
            "method": method,
            "backbone": backbone,
            "seed": seed,
            "recipe": recipe or "paper",
            **(settings or {}),
        },
    )
    result = {
        "run_id": run_id,
        "task": task,
        "backbone": backbone,
        "method": method,
        "recipe": recipe,
        "source": source,
        "kd_weight": kd_weight,
        "transfer_metric": transfer_metric,
        "seed": seed,
        "metric": "accuracy",
        "best": {"value": value, "step": 3},
        "first_epoch": {"value": 0.125},
        "final": {"value": 0.25},
        **changes,
    }
    path = root / folder / "result.json"
    path.write_text(json.dumps(result))
    return path


def describe(
    root: pathlib.Path,
    folder: str,
    *,
    settings: dict[str, Any],
    run_id: str = "someone",
    needs: dict[str, Any] | None = None,
) -> None:
    """The `run.json` of a run that has begun."""
    (root / folder).mkdir(parents=True)
    about = {
        "run_id": run_id,
        "settings": settings,
        "needs": needs or {},
        "fingerprints": {},
    }
    (root / folder / "run.json").write_text(json.dumps(about))


def fail(root: pathlib.Path, folder: str, error: str, **settings: Any) -> None:
    """A run that failed."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    failure = {
        "run_id": f"failed-{folder.replace('/', '-')}",
        "settings": settings,
        "error": error,
        "when": "2026-01-01T00:00:00Z",
    }
    (root / folder / "failed.json").write_text(json.dumps(failure))


Scores = dict[tuple[str, str, str, int], float]


def write_grid(root: pathlib.Path, *, backbone: str = "bert-tiny") -> Scores:
    """Every source x target x seed by every method.

    Returns:
      (label, source, target, seed) -> points of 100.
    """
    rng = np.random.default_rng(7)
    rows = [
        ("model-tuning", "model", ""),
        ("prompt-tuning", "prompt", ""),
        ("PANDA weight 0", "panda", ""),
        *(("PoT", "pot", source) for source in SOURCES),
        *(("PANDA paper", "panda", source) for source in SOURCES),
    ]
    scores: Scores = {}
    for (label, method, source), target, seed in itertools.product(
        rows, TARGETS, SEEDS
    ):
        value = round(float(rng.uniform(0.4, 0.9)), 6)
        scores[label, source, target, seed] = 100 * value
        write_run(
            root,
            f"{backbone}/{label.replace(' ', '_')}/{source}_{target}_{seed}",
            value=value,
            task=target,
            method=method,
            seed=seed,
            source=source or None,
            kd_weight=0.4 if label == "PANDA paper" else 0.0,
            transfer_metric="panda" if label == "PANDA paper" else None,
            backbone=backbone,
        )
    return scores
