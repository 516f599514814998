"""The arguments of every verb: gin configurables, and flags of the same name.

This module must stay light (no JAX): `panda-jax --help` reads it.
"""

import dataclasses
import inspect
import re
from typing import Any

from panda_jax.cluster import Settings
from panda_jax.errors import UserError
from panda_jax.experiments.grid import grid
from panda_jax.runs import (
    FUSIONS,
    INITIALISERS,
    KINDS,
    METHODS,
    METRICS,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    TRANSFORMS,
    Run,
    check_types,
)

# Read and written as files; TFDS alone knows buckets too.
PATHS = (
    "backbone",
    "backbones",
    "ceiling",
    "data_dir",
    "input",
    "json",
    "markdown",
    "model_dir",
    "out_dir",
    "path",
    "prompt",
    "runs",
    "scores",
    "source",
    "sources",
    "target",
    "target_prompt",
    "targets",
    "teacher",
    "text_vocabulary",
    "truth",
)


def _check_paths(settings: Any) -> None:
    """A bucket's URL would silently become a folder named `gs:`."""
    for name in PATHS:
        value = getattr(settings, name, None)
        parts = value if isinstance(value, tuple) else str(value).split(",")
        if any(re.match(r"\s*\w+://", str(part)) for part in parts):
            raise UserError(
                f"{name} is {value!r}, expected a path: files are read and "
                "written here, not URLs. Mount the bucket, e.g. with gcsfuse "
                "(launch/mount.sh), and give the path below its folder."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """How the devices are shared out.

    Attributes:
      num_partitions: devices that hold a layer together, as in T5X.
      mesh_shape: data,fsdp,model in place of num_partitions (as 4,1,2); -1
        stands for what is left.
      parameter_partitioning_dims: 1 or 2: with 2 the frozen weights are also
        split over fsdp.
      chunk: lanes that a device computes at a time, 0 for all; None for one on
        CPU, and on accelerators as many as should fit.
    """

    num_partitions: int | None = None
    mesh_shape: str | None = None
    parameter_partitioning_dims: int = 1
    chunk: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Devices, Settings, Run):
    """Train one prompt; started again on the same model_dir it resumes.

    Attributes:
      source: pot and panda: folder of the source task's prompt (or run).
      sources: several in place of one: a bank, or comma-separated folders; see
        transfer_metric, top_k and fusion.
      teacher: panda: folder of the source's prompt tuned on the target; made
        first where absent.
      target_prompt: panda: folder of the target's own prompt, for the
        similarity; made first where absent.
      similarity: panda: sets the similarity instead of measuring it.
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR, and
        without that TFDS.
      tfds_data_dir: folder (or bucket) where TFDS keeps its data sets.
      model_dir: the run folder; by default one below runs/.
      overwrite: replace files in the way, whoever wrote them.
    """

    source: str | None = None
    sources: str | None = None
    teacher: str | None = None
    target_prompt: str | None = None
    similarity: float | None = None
    data_dir: str | None = None
    tfds_data_dir: str | None = None
    model_dir: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Devices, Run):
    """Compile a run's step for chips that are not here: fits or not.

    Without flags of its own a setting is that of `train` in the gin files.

    Attributes:
      topology: a TPU slice (v5e:4x4, v6e:4x4, v5p:2x2x2), which libtpu
        compiles for (extra `plan`), or GPUs (a100:8, h100:8, h200:8) or cpu:8,
        which the CPU's compiler stands in for.
      task: whose rows and answers the step is for.
      fleet: how many runs are trained together.
      no_search: whether to look for the largest fleet that fits.
      json: print one JSON document on stdout; with a file's name, print the
        text and write the document there.
      overwrite: replace files in the way, whoever wrote them.
    """

    topology: str
    task: str = "rte"
    fleet: int = 1
    no_search: bool = False
    json: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_paths(self)


class _Arguments:
    """What the verbs' arguments share: checked types and paths."""

    def __post_init__(self) -> None:
        check_types(self)
        _check_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(_Arguments):
    """Score a stored prompt on a split of its task.

    Attributes:
      prompt: folder of the prompt (or of its run).
      task: task id; by default the prompt's own.
      split: train or validation.
      backbone: id or folder; by default the one the prompt names.
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR.
      tfds_data_dir: folder (or bucket) where TFDS keeps its data sets.
      max_length: longest text in word pieces; None for the prompt's own.
      eval_examples: rows of a subsample in the labels' proportions; None
        for all.
    """

    prompt: str
    task: str | None = None
    split: str = "validation"
    backbone: str | None = None
    data_dir: str | None = None
    tfds_data_dir: str | None = None
    max_length: int | None = None
    eval_examples: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(_Arguments):
    """Answer new rows with a stored prompt: predictions.jsonl.

    Attributes:
      prompt: folder of the prompt (or of its run).
      input: file of one JSON object a line, with the task's text fields.
      out_dir: where predictions.jsonl goes; line n answers line n.
      task: task id; by default the prompt's own.
      backbone: id or folder; by default the one the prompt names.
      max_length: longest text in word pieces; None for the prompt's own.
      overwrite: replace files in the way, whoever wrote them.
    """

    prompt: str
    input: str
    out_dir: str = "."
    task: str | None = None
    backbone: str | None = None
    max_length: int | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scoring(_Arguments):
    """What scoring and ranking share.

    Attributes:
      sources: bank: a folder of prompt (or run) folders.
      backbone: id or folder; by default the one the prompts name.
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR.
      tfds_data_dir: folder (or bucket) where TFDS keeps its data sets.
      examples: training rows a task; first_steps learns from as many and is
        judged by as many.
      max_length: longest text in word pieces; None for each prompt's own.
      readout: pooled, first, mean, or layer_3 (the third layer's mean).
      contrast: for panda: subtract the output without the prompt.
      on_layers: for on: 3:6 for the fourth to the sixth layer; None for all.
      on_input: for on: empty (special tokens only) or examples.
      on_binarised: for on: whether a neuron is active, or how much.
      steps: of first_steps.
      seed: of the start that gradient and first_steps begin at.
      num_partitions: devices that hold a layer together, as in T5X.
      mesh_shape: data,fsdp,model in place of num_partitions (as 4,1,2).
    """

    sources: str
    backbone: str | None = None
    data_dir: str | None = None
    tfds_data_dir: str | None = None
    examples: int = 100
    max_length: int | None = None
    readout: str = "mean"
    contrast: bool = False
    on_layers: str | None = None
    on_input: str = "empty"
    on_binarised: bool = True
    steps: int = 30
    seed: int = 0
    num_partitions: int | None = None
    mesh_shape: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(_Scoring):
    """Score every source for every target; higher = more transferable.

    Attributes:
      targets: bank; by default the sources. For metrics of the targets' labels
        comma-separated task ids will do.
      metrics: comma-separated. Of two prompts: panda, on (run the backbone),
        e_avg, e_pairs, e_concat, d_concat, d_avg (compare vectors). Of the
        target's labelled training rows: logme, h_score, probe, gradient,
        first_steps. Sums of ranks too, as e_avg+on+panda.
      out_dir: where scores.csv, matrices and heat maps go.
      overwrite: replace files in the way, whoever wrote them.
    """

    out_dir: str
    targets: str | None = None
    metrics: str = "panda,e_avg,on"
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank(_Scoring):
    """Rank a bank's sources for one target, best first.

    Attributes:
      target: folder of the target's own tuned prompt, or the name of a prompt
        or task in the bank; for a metric of labels any task id.
      metric: one of score's, or a sum of their ranks as e_avg+on+panda.
      k: how many; None for all.
    """

    target: str
    metric: str = "e_avg+on+panda"
    k: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRanking(_Arguments):
    """Judge metrics by what the transfers did: which ranks sources best.

    Attributes:
      scores: score file, several with commas, or "published".
      truth: file source,target,score (backbone and seed if it has); several
        go with the score files in order; or "published".
      metrics: comma-separated; None for all in the scores.
      combine: combinations, comma-separated, such as e_avg+on+1.5*prior.
      ceiling: other results of the same transfers, judged beside the metrics.
      include_self: whether a source of the target's own name counts.
      ks: comma-separated: how many NDCG and regret look at.
      resamples: of the bootstrap; 0 for no intervals.
      permutations: of the sources; 0 for no p.
      confidence: of the intervals.
      seed: of everything drawn.
      out_dir: where tables go; None prints only.
      scatters: with out_dir: also a scatter a metric and backbone.
      overwrite: replace files in the way, whoever wrote them.
    """

    scores: str
    truth: str
    metrics: str | None = None
    combine: str = ""
    ceiling: str | None = None
    include_self: bool = True
    ks: str = "3,5"
    resamples: int = 2000
    permutations: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    out_dir: str | None = None
    scatters: bool = True
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import(_Arguments):
    """Store a prompt that another project wrote as a prompt folder.

    Attributes:
      format: npy, peft, prompthub or panda.
      path: the file or folder.
      out_dir: the prompt folder; an earlier import there is replaced.
      backbone: id or folder of the model that it was trained on; None for a
        prompt that is only compared with others, or exported again (format
        panda needs one).
      task: that it was trained on; None for what the file or its name says.
      overwrite: replace files in the way, whoever wrote them.
    """

    format: str
    path: str
    out_dir: str
    backbone: str | None = None
    task: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(_Arguments):
    """Write a prompt, or a bank, for other projects and people.

    Attributes:
      format: peft (with a model card) or npy.
      prompt: folder of the prompt (or of its run), or a bank.
      out_dir: the folder; an earlier export there is replaced.
      base_model: for the card: the backbone's name on the Hugging Face Hub.
      overwrite: replace files in the way, whoever wrote them.
    """

    format: str
    prompt: str
    out_dir: str
    base_model: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(_Arguments):
    """List the tasks, or show one: source, features, counts, examples.

    Attributes:
      task: task id; None lists all.
      backbone: whose vocabulary the encoder's examples are shown in.
      text_vocabulary: T5's spiece.model or its folder, for the text-to-text
        examples; None for bytes.
      markdown: file to write a page of the task (or of all) to.
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR.
      tfds_data_dir: folder (or bucket) where TFDS keeps its data sets.
      max_length: longest text in word pieces.
      overwrite: replace files in the way, whoever wrote them.
    """

    task: str | None = None
    backbone: str = "minilm-l6"
    text_vocabulary: str | None = None
    markdown: str | None = None
    data_dir: str | None = None
    tfds_data_dir: str | None = None
    max_length: int = 128
    overwrite: bool = False


# Arguments that are given by place: `panda-jax VERB A B --flag=...`.
PLACED = {
    Tasks: ("task",),
    Import: ("format", "path"),
    Export: ("format", "prompt"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(_Arguments):
    """Look for what would go wrong, and say how to mend it.

    Attributes:
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR.
    """

    data_dir: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(_Arguments):
    """The whole story offline: sources, scores, transfer, a table.

    Attributes:
      out_dir: where everything is written; started again it resumes.
      backbone: id or folder.
      sources: comma-separated tasks to train source prompts on.
      target: task to transfer to.
      seeds: how many seeds each method gets on the target.
      source_examples: training rows a source.
      source_epochs: passes over them.
      target_examples: training rows of the target.
      target_epochs: passes over them.
      eval_examples: development rows, sources and target.
      eval_every: epochs between evaluations of the target.
      prompt_length: P.
      max_length: longest text in word pieces.
      batch_size: B.
      learning_rate: peak, the same for every method.
      kd_lambda: strength of the distillation, recipe paper.
      overwrite: replace files in the way, whoever wrote them.
    """

    out_dir: str
    backbone: str = "minilm-l6"
    sources: str = "toy_sentiment,toy_topic,toy_acceptability"
    target: str = "toy_review"
    seeds: int = 3
    source_examples: int = 320
    source_epochs: int = 2
    target_examples: int = 64
    target_epochs: int = 6
    eval_examples: int = 256
    eval_every: int = 3
    prompt_length: int = 8
    max_length: int = 32
    batch_size: int = 8
    learning_rate: float = 3e-2
    kd_lambda: float = 10.0
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Devices, Settings, grid.Grid):
    """Run what a grid asks for and has no result yet; safe to start again.

    Attributes:
      out_dir: where everything is written; several processes may share it.
      shard: i/n: with which part of the fleets this process begins.
      retry_failed: try again what has failed before.
      keep_going: exit with status 0 although runs have failed; all others are
        made either way.
      stale_seconds: after so many seconds of silence another process's work
        is taken over.
      data_dir: folder of the tasks' own files; default PANDA_DATA_DIR, and
        without that TFDS.
      tfds_data_dir: folder (or bucket) where TFDS keeps its data sets.
      overwrite: replace files in the way, whoever wrote them.
    """

    out_dir: str
    shard: str | None = None
    retry_failed: bool = False
    keep_going: bool = False
    stale_seconds: float = 120.0
    data_dir: str | None = None
    tfds_data_dir: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_paths(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(_Arguments):
    """Tables, statistics and pictures of all runs below a folder.

    Attributes:
      runs: folder with run folders at any depth, such as a grid's.
      out_dir: where report.html, report.md, report.tex, a csv a table and the
        heat maps go.
      scores: score files of the same sources and targets, comma-separated, for
        the source that each metric would have chosen.
      value: the score of a run that counts: best, final or first_epoch.
      confidence: of the intervals.
      resamples: of release 0.1, as is seed: nothing is drawn any more.
      seed: see resamples.
      overwrite: replace files in the way, whoever wrote them.
    """

    runs: str
    out_dir: str
    scores: str | None = None
    value: str = "best"
    confidence: float = 0.95
    resamples: int | None = None
    seed: int | None = None
    overwrite: bool = False


VERBS: dict[str, type] = {
    "demo": Demo,
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "score": Score,
    "rank": Rank,
    "evaluate-ranking": EvaluateRanking,
    "import": Import,
    "export": Export,
    "tasks": Tasks,
    "plan": Plan,
    "grid": Grid,
    "report": Report,
    "doctor": Doctor,
}

# Verbs that answer with one JSON document where they are asked for it.
JSON = (
    "train",
    "evaluate",
    "score",
    "rank",
    "tasks",
    "plan",
    "grid",
    "doctor",
)

# What a field may be, for `--help`; the settings themselves check it.
CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "fusion": FUSIONS,
    "kd_transform": TRANSFORMS,
    "method": METHODS,
    "on_input": ("empty", "examples"),
    "optimizer": OPTIMIZERS,
    "prompt_init": INITIALISERS,
    "prompt_kind": KINDS,
    "recipe": RECIPES,
    "schedule": SCHEDULES,
    "split": ("train", "validation"),
    "transfer_metric": METRICS,
    "value": ("best", "final", "first_epoch"),
}

# Titles and the fields below them, in the order of `--help`. The first family
# that has a verb's class is the verb's; fields that none names come last.
_DEVICE_FIELDS = (
    "dtype",
    "remat",
    "num_partitions",
    "mesh_shape",
    "parameter_partitioning_dims",
    "chunk",
)
_PROCESS_FIELDS = tuple(field.name for field in dataclasses.fields(Settings))
_DATA_FIELDS = ("data_dir", "tfds_data_dir")
_GROUPS: tuple[tuple[tuple[type, ...], dict[str, tuple[str, ...]]], ...] = (
    (
        (Train, Plan),
        {
            "what it is compiled for": (
                "topology",
                "fleet",
                "no_search",
            ),
            "what it trains": ("task", "backbone", "method", "recipe", "seed"),
            "the prompt": (
                "prompt_kind",
                "prompt_length",
                "prompt_init",
                "init_text",
                "init_stddev",
            ),
            "sources": (
                "source",
                "sources",
                "transfer_metric",
                "top_k",
                "fusion",
                "resize_source",
            ),
            "distillation (method panda)": (
                "teacher",
                "target_prompt",
                "similarity",
                "kd_lambda",
                "kd_beta",
                "kd_weight",
                "kd_transform",
                "temperature",
            ),
            "data": (
                *_DATA_FIELDS,
                "train_examples",
                "max_length",
                "target_length",
            ),
            "optimisation": (
                "epochs",
                "steps",
                "batch_size",
                "accumulate",
                "optimizer",
                "learning_rate",
                "schedule",
                "weight_decay",
                "clip",
                "dropout",
            ),
            "evaluation": (
                "eval_examples",
                "eval_every",
                "eval_period",
                "patience",
            ),
            "devices and memory": _DEVICE_FIELDS,
            "several processes": _PROCESS_FIELDS,
            "output": ("model_dir", "overwrite", "json"),
        },
    ),
    (
        (Score, Rank),
        {
            "what is compared": (
                "target",
                "sources",
                "targets",
                "metric",
                "metrics",
                "k",
                "backbone",
            ),
            "data, for metrics that read rows": (
                *_DATA_FIELDS,
                "examples",
                "max_length",
            ),
            "settings of single metrics": (
                "readout",
                "contrast",
                "on_layers",
                "on_input",
                "on_binarised",
                "steps",
                "seed",
            ),
            "devices": _DEVICE_FIELDS,
            "output": ("out_dir", "overwrite"),
        },
    ),
    (
        (Grid,),
        {
            "which runs": (
                "sources",
                "targets",
                "backbones",
                "methods",
                "recipes",
                "seeds",
            ),
            "their settings": ("settings", "overrides", "sweep"),
            "data": _DATA_FIELDS,
            "how they are worked off": (
                "shard",
                "retry_failed",
                "keep_going",
                "stale_seconds",
            ),
            "devices and memory": _DEVICE_FIELDS,
            "several processes that train one run": _PROCESS_FIELDS,
            "output": ("out_dir", "overwrite"),
        },
    ),
    (
        (EvaluateRanking,),
        {
            "what is judged": (
                "scores",
                "truth",
                "metrics",
                "combine",
                "ceiling",
                "include_self",
            ),
            "statistics": (
                "ks",
                "resamples",
                "permutations",
                "confidence",
                "seed",
            ),
            "output": ("out_dir", "scatters", "overwrite"),
        },
    ),
    (
        (Demo,),
        {
            "what is told": ("backbone", "sources", "target", "seeds"),
            "its runs": (
                "source_examples",
                "source_epochs",
                "target_examples",
                "target_epochs",
                "eval_examples",
                "eval_every",
                "prompt_length",
                "max_length",
                "batch_size",
                "learning_rate",
                "kd_lambda",
            ),
            "output": ("out_dir", "overwrite"),
        },
    ),
)


def groups(cls: type) -> dict[str, list[str]]:
    """Title -> fields of a verb's arguments, as `--help` shows them."""
    left = [field.name for field in dataclasses.fields(cls)]
    found: dict[str, list[str]] = {}
    for classes, family in _GROUPS:
        for title, names in family.items() if cls in classes else ():
            here = [name for name in names if name in left]
            if here:
                found[title] = here
            left = [name for name in left if name not in here]
    if left:
        found["flags" if not found else "more flags"] = left
    return found


def gin_name(verb: str) -> str:
    """A verb as gin can name it: `import` begins one of its statements."""
    name = verb.replace("-", "_")
    return f"{name}_prompt" if verb in ("import", "export") else name


def kinds(field: dataclasses.Field[Any]) -> list[str]:
    """The names of the types that a field's value may have."""
    hint = str(getattr(field.type, "__name__", field.type))
    return [part.strip() for part in hint.split("|")]


def metavar(cls: type, field: dataclasses.Field[Any]) -> str:
    """What `--help` writes for a flag's value: its choices, or its type."""
    choices = CHOICES.get(field.name)
    if choices and "str" in kinds(field):
        return f"{{{','.join(choices)}}}"
    for kind in kinds(field):
        if kind in ("int", "float"):
            return kind.upper()
        if kind == "dict":
            return "JSON"
        if kind.startswith("tuple"):
            return "A,B,..."
    if field.name == "backbone":
        return "ID"
    names = ("target", *_DATA_FIELDS)
    if field.name in names or field.name in PATHS:
        return "FILE" if field.name in ("input", "json") else "PATH"
    return "TEXT"


def settings_help(cls: type) -> dict[str, str]:
    """Field name -> its line in the class's and its bases' `Attributes`."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        _, _, attributes = text.partition("Attributes:\n")
        for name, entry in re.findall(
            r"^  (\w+): (.*(?:\n    .*)*)", attributes, re.MULTILINE
        ):
            found[name] = " ".join(entry.split())
    return found


def convert(cls: type, name: str, text: str) -> Any:
    """A flag's text as the type of the field, or an error that names it.

    Raises:
      UserError: the text is no value of that type.
    """
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    types = kinds(field)
    if text == "None" and "None" in types:
        return None
    try:
        if "int" in types:
            return int(text)
        if "float" in types:
            return float(text)
    except ValueError:
        raise UserError(
            f"--{name}={text}: expected a value of type {' | '.join(types)}."
        ) from None
    return truth(f"--{name}", text) if "bool" in types else text


def truth(flag: str, text: str) -> bool:
    """The value of a yes-or-no flag that is given one.

    Raises:
      UserError: it is neither true nor false.
    """
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise UserError(
            f"{flag}={text}: expected true or false, or {flag} alone."
        )
    return known[text.lower()]
