"""Every verb as a dataclass: its flags, and gin's configurables of that name.

A field's annotation is its flag: type, choices, path or not, what `--help`
says of it and under which title (`panda_jax.fields`). The first line of a
class's docstring is what `panda-jax help` says of the verb.

This module must stay light (no JAX): `panda-jax --help` reads it.
"""

import dataclasses
from typing import Annotated, Literal

from panda_jax import fields
from panda_jax.config import registry
from panda_jax.config.runs import Run
from panda_jax.experiments.grid import grid
from panda_jax.fields import (
    BackboneName,
    File,
    Group,
    IsPath,
    OneOf,
    Path,
    PathOrUrl,
)
from panda_jax.parallel.cluster import Settings


@dataclasses.dataclass(frozen=True)
class ByPlace:
    """Marks an argument that is given by place: `panda-jax VERB A B`."""


# What several verbs have.
DataDir = Annotated[
    Path | None,
    Group.DATA,
    "Folder of the tasks' own files; `panda-jax tasks NAME` says where in it "
    "they lie. By default what PANDA_DATA_DIR says, without that TFDS.",
]
TfdsDataDir = Annotated[
    PathOrUrl | None,
    Group.DATA,
    "Folder or bucket in which TensorFlow Datasets (TFDS) keeps its data sets, "
    "for tasks whose own files are not given.",
]
Overwrite = Annotated[
    bool,
    Group.OUTPUT,
    "Replace files that are in the way, whoever wrote them. Otherwise files "
    "of yours, and of other verbs, are an error.",
]
PromptFolder = Annotated[
    Path, Group.INPUT, "Folder of a stored prompt, or of the run that made it."
]
ItsBackbone = Annotated[
    BackboneName | None,
    Group.INPUT,
    "The pretrained model that the prompts belong to: an id or a folder. By "
    "default the one that they name.",
]
ItsTask = Annotated[
    str | None, Group.INPUT, "The task. By default the prompt's own."
]
ItsLength = Annotated[
    int | None,
    Group.DATA,
    "Longest input in word pieces; what is longer is cut. By default each "
    "prompt's own.",
]
NumPartitions = Annotated[
    int | None,
    Group.DEVICES,
    "How many devices hold each layer together, as in T5X. By default 1.",
]
MeshShape = Annotated[
    str | None,
    Group.DEVICES,
    "Numbers of devices along the axes data,fsdp,model, such as 4,1,2, in "
    "place of --num_partitions; -1 stands for what is left.",
]


class _Arguments:
    """What the verbs' arguments share: they are checked."""

    def __post_init__(self) -> None:
        fields.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnRows:
    """Rows of the user's own, in place of a task's."""

    train_file: Annotated[
        File | None,
        Group.DATA,
        "Your own training rows, as CSV, TSV, JSON lines or Parquet, by the "
        "file's ending. --task names what they are.",
    ] = None
    validation_file: Annotated[
        File | None,
        Group.DATA,
        "Your own rows to choose and report by. By default a fifth of the "
        "training rows, by a fixed draw.",
    ] = None
    test_file: Annotated[
        File | None, Group.DATA, "Your own rows for --split=test."
    ] = None
    text: Annotated[
        str | None,
        Group.DATA,
        "Fields of your rows that hold the texts, with commas: a first and, if "
        "there are more, a second; column numbers from 0 where a file has no "
        "header.",
    ] = None
    label: Annotated[
        str | None, Group.DATA, "Field of your rows that holds the answer."
    ] = None
    kind: Annotated[
        Literal["classification", "regression", "choice", "tags"] | None,
        Group.DATA,
        "What the answers of your rows are. By default what they look like.",
    ] = None
    labels: Annotated[
        str | None,
        Group.DATA,
        "The classes of your rows in the order of their ids, with commas. By "
        "default in alphabetical order, whole numbers by value.",
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """How the devices are shared out."""

    num_partitions: NumPartitions = None
    mesh_shape: MeshShape = None
    parameter_partitioning_dims: Annotated[
        int,
        Group.DEVICES,
        "In how many dimensions frozen weights are split: 1, over the axis "
        "model, or 2, over fsdp too.",
    ] = 1
    chunk: Annotated[
        int | None,
        Group.DEVICES,
        "Of the runs that are trained together, how many a device computes at "
        "a time; 0 for all. By default 1 on CPU, and on accelerators as many "
        "as should fit.",
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Devices, Settings, OwnRows, Run):
    """Train one prompt; started again on the same model_dir it resumes."""

    source: Annotated[
        Path | None,
        Group.SOURCES,
        "Folder of the prompt of another task, or of the run that made it, "
        "which methods pot and panda need.",
    ] = None
    sources: Annotated[
        Path | None,
        Group.SOURCES,
        "Several source prompts in place of --source: a bank (a folder of "
        "prompt or run folders), or folders with commas between.",
    ] = None
    teacher: Annotated[
        Path | None,
        Group.DISTILLATION,
        "Folder of the teacher: the source's prompt, tuned on this task by "
        "method pot. By default it is made first.",
    ] = None
    target_prompt: Annotated[
        Path | None,
        Group.DISTILLATION,
        "Folder of this task's own prompt, made by method prompt, which the "
        "source is compared with. By default it is made first.",
    ] = None
    start: Annotated[
        Path | None,
        Group.PROMPT,
        "Folder of a prompt of this task, or of the run that made it, whose "
        "vectors and head are gone on from; methods prompt, panda and "
        "finetune.",
    ] = None
    similarity: Annotated[
        float | None,
        Group.DISTILLATION,
        "The similarity of source and target, in place of measuring it.",
    ] = None
    data_dir: DataDir = None
    tfds_data_dir: TfdsDataDir = None
    model_dir: Annotated[
        Path | None,
        Group.OUTPUT,
        "Folder of the run. By default one below runs/ that follows from the "
        "settings.",
    ] = None
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Devices, Run):
    """Compile a run's step for chips that are not here: fits or not.

    Without flags of its own a setting is that of `train` in the gin files.
    """

    topology: Annotated[
        str,
        Group.MACHINE,
        "The devices: a TPU slice (v5e:4x4, v6e:4x4, v5p:2x2x2), which libtpu "
        "compiles for (extra `plan`), or GPUs (a100:8, h100:8, h200:8) or "
        "cpu:8, which the CPU's compiler stands in for.",
    ]
    fleet: Annotated[
        int, Group.MACHINE, "How many runs are trained together."
    ] = 1
    no_search: Annotated[
        bool,
        Group.MACHINE,
        "Whether to look for the largest number of runs that fit together.",
    ] = False
    task: Annotated[
        str, Group.RUN, "The task whose rows and answers the step is for."
    ] = "rte"
    json: Annotated[
        File | None,
        Group.OUTPUT,
        "Print one JSON document on stdout; with a file's name, write it "
        "there and print the text.",
    ] = None
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(_Arguments, OwnRows):
    """Score a stored prompt on a split of its task."""

    prompt: PromptFolder
    task: ItsTask = None
    split: Annotated[
        Literal["train", "validation", "test"],
        Group.DATA,
        "The rows to score it on.",
    ] = "validation"
    backbone: ItsBackbone = None
    data_dir: DataDir = None
    tfds_data_dir: TfdsDataDir = None
    max_length: ItsLength = None
    eval_examples: Annotated[
        int | None,
        Group.DATA,
        "Score a sample of so many rows, labels in their proportions. By "
        "default all rows.",
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(_Arguments):
    """Answer new rows with a stored prompt: predictions.jsonl."""

    prompt: PromptFolder
    input: Annotated[
        File,
        Group.INPUT,
        "File of the rows, with answers or without: CSV, TSV, JSON lines, JSON "
        "or Parquet with the task's text fields, or as the task's own files "
        "are; - is stdin.",
    ]
    input_format: Annotated[
        Literal["csv", "tsv", "jsonl", "json", "parquet", "conll"] | None,
        Group.INPUT,
        "What the input is; conll is columns with a word a line. By default "
        "what its ending says, else what it looks like.",
    ] = None
    text: Annotated[
        str | None,
        Group.INPUT,
        "What the input calls the fields that the task asks for, with commas "
        "and in their order, where it calls them otherwise; column numbers "
        "from 0 of a file without a header.",
    ] = None
    task: ItsTask = None
    backbone: ItsBackbone = None
    max_length: ItsLength = None
    output: Annotated[
        File | None,
        Group.OUTPUT,
        "File of the answers, in the order of the rows; - is stdout. By "
        "default predictions.jsonl, or what the format calls it, in --out_dir.",
    ] = None
    format: Annotated[
        Literal["jsonl", "csv", "submission"] | None,
        Group.OUTPUT,
        "What the answers are written as: a JSON object or a CSV line a row, "
        "or as SuperGLUE, GLUE or SQuAD take the task's. By default csv where "
        "--output ends so, else jsonl.",
    ] = None
    keep_fields: Annotated[
        bool, Group.OUTPUT, "Write each row's fields beside its answer."
    ] = False
    out_dir: Annotated[
        Path | None,
        Group.OUTPUT,
        "Folder of the answers, in place of --output. By default the working "
        "folder.",
    ] = None
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scoring(_Arguments, OwnRows):
    """What scoring and ranking share."""

    sources: Annotated[
        Path,
        Group.INPUT,
        "A bank, which is a folder of prompt or run folders: the prompts of "
        "the source tasks.",
    ]
    backbone: ItsBackbone = None
    data_dir: DataDir = None
    tfds_data_dir: TfdsDataDir = None
    examples: Annotated[
        int,
        Group.DATA,
        "How many training rows of a task the metrics read; first_steps "
        "learns from as many and is judged by as many others.",
    ] = 100
    max_length: ItsLength = None
    readout: Annotated[
        str,
        Group.METRICS,
        "Which output of an encoder the metrics panda, logme, h_score and "
        "probe read: pooled, first, mean, or the mean of one layer, such as "
        "layer_3 for the third.",
    ] = "mean"
    contrast: Annotated[
        bool,
        Group.METRICS,
        "Metric panda: compare what the prompts change, by subtracting the "
        "output without a prompt.",
    ] = False
    on_layers: Annotated[
        str | None,
        Group.METRICS,
        "Metric on: the layers that it reads; 3:6 for the fourth to the "
        "sixth. By default all.",
    ] = None
    on_input: Annotated[
        Literal["empty", "examples"],
        Group.METRICS,
        "Metric on: whether the prompts are given special tokens alone, or "
        "each task's rows.",
    ] = "empty"
    on_binarised: Annotated[
        bool,
        Group.METRICS,
        "Metric on: compare which neurons are active, rather than how much.",
    ] = True
    steps: Annotated[
        int, Group.METRICS, "Metric first_steps: how many updates it makes."
    ] = 30
    seed: Annotated[
        int,
        Group.METRICS,
        "Metrics gradient and first_steps: seed of what they begin with.",
    ] = 0
    num_partitions: NumPartitions = None
    mesh_shape: MeshShape = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(_Scoring):
    """Score every source for every target; higher = more transferable."""

    targets: Annotated[
        Path | None,
        Group.INPUT,
        "A bank of the target tasks' own prompts, or, for metrics that read "
        "labels alone, names of tasks with commas. By default the sources.",
    ] = None
    metrics: Annotated[
        str,
        Group.INPUT,
        "Names with commas. Of the prompts' vectors: e_avg, e_pairs, "
        "e_concat, d_concat, d_avg; of what two prompts do in the model: "
        "panda, on; of the target's labelled training rows: logme, h_score, "
        "probe, gradient, first_steps. With + sums of ranks: e_avg+on+panda.",
    ] = "panda,e_avg,on"
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "Folder that scores.csv, a matrix and a heat map of each metric are "
        "written to.",
    ]
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rank(_Scoring):
    """Rank a bank's sources for one target, best first."""

    target: Annotated[
        Path,
        Group.INPUT,
        "Folder of the target's own tuned prompt, or the name of a prompt or "
        "task in the bank; for a metric that reads labels alone, any task.",
    ]
    metric: Annotated[
        str,
        Group.INPUT,
        "One of score's metrics, or with + the sum of their ranks.",
    ] = "e_avg+on+panda"
    k: Annotated[
        int | None,
        Group.INPUT,
        "How many sources to show, best first. By default all.",
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRanking(_Arguments):
    """Judge metrics by what the transfers did: which ranks sources best."""

    scores: Annotated[
        Path,
        Group.INPUT,
        "File that `panda-jax score` wrote; several with commas, a backbone "
        "each; or the word published, for the paper's own figures.",
    ]
    truth: Annotated[
        Path,
        Group.INPUT,
        "File of what the transfers did: columns source, target, score, and "
        "backbone and seed if there are several. Several files go with the "
        "score files in order; or the word published.",
    ]
    metrics: Annotated[
        str | None,
        Group.INPUT,
        "Which metrics of the score files to judge, with commas. By default "
        "all.",
    ] = None
    combine: Annotated[
        str,
        Group.INPUT,
        "Sums of metrics to judge beside them, with commas, such as "
        "e_avg+on+1.5*prior; prior is how good a source is on other targets.",
    ] = ""
    ceiling: Annotated[
        Path | None,
        Group.INPUT,
        "File of other results of the same transfers, such as those of longer "
        "training, judged as if they were a metric: how well any could do.",
    ] = None
    include_self: Annotated[
        bool,
        Group.INPUT,
        "Whether a source of the target's own name counts.",
    ] = True
    ks: Annotated[
        str,
        Group.STATISTICS,
        "How many sources, best first, the statistics NDCG@k and regret@k "
        "look at, with commas.",
    ] = "3,5"
    resamples: Annotated[
        int,
        Group.STATISTICS,
        "Draws of the bootstrap that intervals are made of; 0 for none.",
    ] = 2000
    permutations: Annotated[
        int,
        Group.STATISTICS,
        "How often sources are shuffled for the p-values; 0 for none.",
    ] = 10_000
    confidence: Annotated[
        float, Group.STATISTICS, "Coverage of the intervals, 0 to 1."
    ] = 0.95
    seed: Annotated[int, Group.STATISTICS, "Seed of everything drawn."] = 0
    out_dir: Annotated[
        Path | None,
        Group.OUTPUT,
        "Folder that tables are written to. By default they are only printed.",
    ] = None
    scatters: Annotated[
        bool,
        Group.OUTPUT,
        "Also write a scatter plot of each metric and backbone to --out_dir.",
    ] = True
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import(_Arguments):
    """Store a prompt that another project wrote as a prompt folder."""

    format: Annotated[
        registry.ImportFormat,
        ByPlace(),
        Group.INPUT,
        "Who wrote it: npy (NumPy), t5x (a checkpoint of a prompt-tuning run), "
        "peft (Hugging Face PEFT), prompthub (thunlp's PromptHub) or panda "
        "(the paper's released code).",
    ]
    path: Annotated[
        Path, ByPlace(), Group.INPUT, "The file or folder that holds it."
    ]
    backbone: Annotated[
        BackboneName | None,
        Group.INPUT,
        "The model that it was trained on: an id or a folder; format panda "
        "needs one. Without one it can be compared and exported, not used.",
    ] = None
    task: Annotated[
        str | None,
        Group.INPUT,
        "The task that it was trained on. By default what the file, or its "
        "name, says.",
    ] = None
    task_index: Annotated[
        int | None,
        Group.INPUT,
        "Of a file with the prompts of several tasks (format peft, type "
        "MULTITASK_PROMPT_TUNING): which to take, from 0. By default the only "
        "one.",
    ] = None
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "The prompt folder to write; an earlier import there is replaced.",
    ]
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(_Arguments):
    """Write a prompt, or a bank, for other projects and people."""

    format: Annotated[
        registry.ExportFormat,
        ByPlace(),
        Group.INPUT,
        "Who is to read it: peft (Hugging Face PEFT; with a model card) or "
        "npy (NumPy).",
    ]
    prompt: Annotated[
        Path,
        ByPlace(),
        Group.INPUT,
        "Folder of a stored prompt, of the run that made it, or a bank.",
    ]
    base_model: Annotated[
        str | None,
        Group.OUTPUT,
        "Name of the backbone on the Hugging Face Hub, for the model card.",
    ] = None
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "The folder to write; an earlier export there is replaced.",
    ]
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(_Arguments):
    """List the tasks, or show one: source, features, counts, examples."""

    task: Annotated[
        str | None,
        ByPlace(),
        Group.INPUT,
        "The task to show. By default all are listed.",
    ] = None
    backbone: Annotated[
        BackboneName,
        Group.INPUT,
        "The encoder in whose vocabulary examples are shown: an id or a "
        "folder.",
    ] = "minilm-l6"
    text_vocabulary: Annotated[
        Path | None,
        Group.INPUT,
        "T5's file spiece.model, or its folder, for examples from text to "
        "text. By default these are shown as bytes.",
    ] = None
    data_dir: DataDir = None
    tfds_data_dir: TfdsDataDir = None
    max_length: Annotated[
        int, Group.DATA, "Longest input in word pieces; the rest is cut."
    ] = 128
    markdown: Annotated[
        File | None,
        Group.OUTPUT,
        "File to write a page of the task, or of all tasks, to.",
    ] = None
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(_Arguments):
    """Look for what would go wrong, and say how to mend it."""

    data_dir: DataDir = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(_Arguments):
    """The whole story offline: sources, scores, transfer, a table."""

    backbone: Annotated[
        BackboneName, Group.RUN, "The pretrained model: an id or a folder."
    ] = "minilm-l6"
    sources: Annotated[
        str, Group.RUN, "Tasks to train a source prompt on each, with commas."
    ] = "toy_sentiment,toy_topic,toy_acceptability"
    target: Annotated[str, Group.RUN, "The task to transfer to."] = "toy_review"
    seeds: Annotated[
        int, Group.RUN, "How often each method is run on the target."
    ] = 3
    prompt_length: Annotated[
        int, Group.PROMPT, "How many vectors each prompt has."
    ] = 8
    kd_lambda: Annotated[
        float,
        Group.DISTILLATION,
        "Strength of the distillation, which the similarity is multiplied by.",
    ] = 10.0
    source_examples: Annotated[
        int, Group.DATA, "Training rows of each source."
    ] = 320
    target_examples: Annotated[
        int, Group.DATA, "Training rows of the target."
    ] = 64
    eval_examples: Annotated[
        int, Group.DATA, "Development rows of each task that are scored."
    ] = 256
    max_length: Annotated[
        int, Group.DATA, "Longest input in word pieces; the rest is cut."
    ] = 32
    source_epochs: Annotated[
        int, Group.TRAINING, "Passes over the training rows of a source."
    ] = 2
    target_epochs: Annotated[
        int, Group.TRAINING, "Passes over the training rows of the target."
    ] = 6
    batch_size: Annotated[
        int, Group.TRAINING, "How many rows an update learns from."
    ] = 8
    learning_rate: Annotated[
        float,
        Group.TRAINING,
        "The highest learning rate of the schedule, the same for all methods.",
    ] = 3e-2
    eval_every: Annotated[
        int, Group.EVALUATION, "Epochs between evaluations of a run."
    ] = 3
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "Folder that everything is written to; started again on it, the demo "
        "resumes.",
    ]
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid(Devices, Settings, grid.Grid):
    """Run what a grid asks for and has no result yet; safe to start again."""

    sources: Annotated[
        tuple[str, ...],
        Group.RUNS,
        "Tasks that a source prompt is trained on each.",
    ] = grid.Grid.sources
    targets: Annotated[
        tuple[str, ...],
        Group.RUNS,
        "Tasks that every source is transferred to.",
    ] = grid.Grid.targets
    backbones: Annotated[
        tuple[str, ...],
        IsPath(),
        Group.RUNS,
        "Pretrained models: ids or folders.",
    ] = grid.Grid.backbones
    methods: Annotated[
        tuple[str, ...],
        OneOf((*registry.METHODS, "control")),
        Group.RUNS,
        "How the targets are adapted; control is panda with weight 0. What "
        "these need is made too.",
    ] = grid.Grid.methods
    recipes: Annotated[
        tuple[str, ...],
        OneOf(registry.RECIPES),
        Group.RUNS,
        "How panda's teacher is listened to.",
    ] = grid.Grid.recipes
    seeds: Annotated[
        tuple[int, ...],
        Group.RUNS,
        "Seeds; each makes everything anew, its source prompts included.",
    ] = grid.Grid.seeds
    settings: Annotated[
        dict | None,
        Group.RUNS,
        'Settings of every run, as train has them: {"epochs": 3}.',
    ] = grid.Grid.settings
    overrides: Annotated[
        dict | None,
        Group.RUNS,
        "Settings of the runs that all words of a key describe; more words "
        'win: {"panda": {...}, "source mnli": {...}}. Words are methods '
        "(control listens to panda's too), source, the tasks that are "
        "trained on, backbones, recipes.",
    ] = grid.Grid.overrides
    sweep: Annotated[
        dict | None,
        Group.RUNS,
        "Settings of panda, each with a list of values to try, in all "
        'combinations: {"kd_lambda": [0.3, 1.0]}.',
    ] = grid.Grid.sweep
    own_tasks: Annotated[
        dict | None,
        Group.DATA,
        "Tasks of rows of your own, by the name that --sources and --targets "
        'then have for them: {"reviews": {"train_file": "r.csv", "text": '
        '"review", "label": "stars"}}; also validation_file, test_file, kind '
        "and labels, as train has them.",
    ] = grid.Grid.own_tasks
    shard: Annotated[
        str | None,
        Group.WORK,
        "i/n, such as 0/4: the part of the work that this process of n begins "
        "with.",
    ] = None
    retry_failed: Annotated[
        bool, Group.WORK, "Try again what has failed before."
    ] = False
    keep_going: Annotated[
        bool,
        Group.WORK,
        "Exit with status 0 although runs have failed; the others are made "
        "either way.",
    ] = False
    stale_seconds: Annotated[
        float,
        Group.WORK,
        "Seconds of silence after which another process's work is taken over.",
    ] = 120.0
    data_dir: DataDir = None
    tfds_data_dir: TfdsDataDir = None
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "Folder that everything is written to; several processes may share it.",
    ]
    overwrite: Overwrite = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(_Arguments):
    """Tables, statistics and pictures of all runs below a folder."""

    runs: Annotated[
        Path,
        Group.INPUT,
        "Folder with run folders at any depth, such as a grid's.",
    ]
    scores: Annotated[
        Path | None,
        Group.INPUT,
        "Files that `panda-jax score` wrote of the same sources and targets, "
        "with commas, for the source that each metric would have chosen.",
    ] = None
    value: Annotated[
        Literal["best", "final", "first_epoch"],
        Group.INPUT,
        "Which score of a run counts: its best, that at its end, or that "
        "after its first epoch.",
    ] = "best"
    confidence: Annotated[
        float, Group.STATISTICS, "Coverage of the intervals, 0 to 1."
    ] = 0.95
    resamples: Annotated[
        int | None,
        Group.STATISTICS,
        "Has no effect: release 0.1 drew intervals, which are computed now.",
    ] = None
    seed: Annotated[
        int | None, Group.STATISTICS, "Has no effect, as --resamples."
    ] = None
    out_dir: Annotated[
        Path,
        Group.OUTPUT,
        "Folder that report.html, report.md, report.tex, a csv of each table "
        "and the heat maps are written to.",
    ]
    overwrite: Overwrite = False


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


def placed(cls: type) -> tuple[str, ...]:
    """The arguments of a verb that are given by place, in order."""
    settings = fields.of(cls).values()
    return tuple(s.name for s in settings if ByPlace() in s.marks)


def gin_name(verb: str) -> str:
    """A verb as gin can name it: `import` begins one of its statements."""
    name = verb.replace("-", "_")
    return f"{name}_prompt" if verb in ("import", "export") else name
