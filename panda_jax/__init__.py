"""Prompt transfer for frozen language models, in JAX.

Train soft prompts on source tasks, predict by activation similarity which
source helps a target, and transfer it with PANDA (arXiv 2208.10160).

Importing this package loads neither TensorFlow nor SeqIO; the names below are
imported from their modules when they are first used.
"""

import importlib
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panda_jax.api.scoring import rank as rank
    from panda_jax.api.scoring import score as score
    from panda_jax.api.training import train as train
    from panda_jax.api.training import train_fleet as train_fleet
    from panda_jax.errors import UserError as UserError
    from panda_jax.experiments.ranking.ranking import (
        evaluate_ranking as evaluate_ranking,
    )
    from panda_jax.parallel.sharding import Partitioner as Partitioner
    from panda_jax.prompts import Prompt as Prompt
    from panda_jax.store.backbones import Backbone as Backbone
    from panda_jax.store.backbones import load_backbone as load_backbone
    from panda_jax.store.prompt_folders import PromptBank as PromptBank
    from panda_jax.store.prompt_folders import StoredPrompt as StoredPrompt
    from panda_jax.store.prompt_folders import load_prompt as load_prompt
    from panda_jax.store.prompt_folders import save_prompt as save_prompt
    from panda_jax.training.evaluation import evaluate as evaluate
    from panda_jax.training.lane import TrainResult as TrainResult
    from panda_jax.training.predictions import predict as predict
    from panda_jax.transfer.scores import Scores as Scores

_here = pathlib.Path(__file__).resolve().parent
if not (_here / "tasks").is_dir() and (_here.parent / "tasks").is_dir():
    # A checkout keeps the task registries beside the package; a wheel puts
    # them inside.  Either way they are `panda_jax.tasks`.
    __path__.append(str(_here.parent))

# Public name -> where it is defined.
_HOME = {
    "Backbone": "store.backbones.Backbone",
    "Partitioner": "parallel.sharding.Partitioner",
    "Prompt": "prompts.Prompt",
    "PromptBank": "store.prompt_folders.PromptBank",
    "Scores": "transfer.scores.Scores",
    "StoredPrompt": "store.prompt_folders.StoredPrompt",
    "TrainResult": "training.lane.TrainResult",
    "UserError": "errors.UserError",
    "evaluate": "training.evaluation.evaluate",
    "evaluate_ranking": "experiments.ranking.ranking.evaluate_ranking",
    "load_backbone": "store.backbones.load_backbone",
    "load_prompt": "store.prompt_folders.load_prompt",
    "predict": "training.predictions.predict",
    "rank": "api.scoring.rank",
    "save_prompt": "store.prompt_folders.save_prompt",
    "score": "api.scoring.score",
    "train": "api.training.train",
    "train_fleet": "api.training.train_fleet",
}

# Modules that release 0.1's pages and the cards of its exported prompts name.
_FORMER_MODULES = {
    "exchange": "store.exchange",
    "measures": "transfer.transfer_metrics",
    "metrics": "data.task_metrics",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _FORMER_MODULES:
        return importlib.import_module(f"panda_jax.{_FORMER_MODULES[name]}")
    if name not in _HOME:
        raise AttributeError(f"module 'panda_jax' has no attribute {name!r}")
    module, attribute = _HOME[name].rsplit(".", 1)
    return getattr(importlib.import_module(f"panda_jax.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
