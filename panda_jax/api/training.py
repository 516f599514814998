"""The front door of training: checks, what a run starts from, then the loop."""

import contextlib
import dataclasses
import math
import pathlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from panda_jax.api import run_inputs, scoring
from panda_jax.config import runs
from panda_jax.config.runs import Run
from panda_jax.errors import UserError
from panda_jax.io import ownership
from panda_jax.io.claims import Claim
from panda_jax.io.files import PathLike, read_json
from panda_jax.parallel import distributed
from panda_jax.parallel.sharding import Partitioner
from panda_jax.step import losses
from panda_jax.store import prompt_folders
from panda_jax.store.backbones import Backbone, load_backbone
from panda_jax.store.prompt_folders import StoredPrompt, load_prompt
from panda_jax.tasks import own, specs
from panda_jax.training import identity, run_folder
from panda_jax.training.lane import Lane, Needs, TrainResult
from panda_jax.training.trainer import Trainer
from panda_jax.transfer import source_fusion
from panda_jax.transfer.scorer import EXAMPLES
from panda_jax.transfer.transfer_metrics import METRICS


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is written.

    Attributes:
      folder: its own.
      held: what lets go of the folder at its end; None where the caller holds
        it.
      overwrite: whether what is in the way there may be replaced.
    """

    folder: pathlib.Path
    held: contextlib.ExitStack | None = None
    overwrite: bool = False


def train(
    backbone: Backbone | str = "minilm-l6",
    *,
    source: run_inputs.PromptLike | None = None,
    sources: source_fusion.SourcesLike | None = None,
    teacher: run_inputs.PromptLike | None = None,
    target_prompt: run_inputs.PromptLike | None = None,
    start: run_inputs.PromptLike | None = None,
    similarity: float | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    model_dir: PathLike | None = None,
    quiet: bool = False,
    partitioner: Partitioner | None = None,
    overwrite: bool = False,
    train_rows: Any = None,
    eval_rows: Any = None,
    test_rows: Any = None,
    text: Sequence[str] | str | None = None,
    label: str | None = None,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    **settings: Any,
) -> TrainResult:
    """Trains one prompt (or, with method `finetune`, the backbone) on a task.

    Started again on the same `model_dir` with the same settings it resumes,
    and returns at once when the run is done. With more `steps` or `epochs`
    alone it goes on from where it had ended: with the schedule `constant` or
    `exponential` as if it had been that long from the start; `linear` is laid
    anew over all steps.

    Args:
      backbone: loaded, or an id (see `load_backbone`).
      source: for `pot` and `panda`: a prompt tuned on the source task, or the
        folder of one (or of its run).
      sources: several in place of one: a bank, or folders. `transfer_metric`
        measures each, `top_k` of them are kept and by `fusion` made one
        prompt or one teacher each, weighed by their similarity.
      teacher: for `panda`: the source's prompt tuned on the target. Without
        it, that run is made first, in `model_dir/teacher`.
      target_prompt: for `panda` with recipe `paper` or `kl`: the target's
        own tuned prompt, for the similarity. Without it, it is trained first,
        in `model_dir/target_prompt`.
      start: for `prompt`, `panda` and `finetune`: a prompt of this task, whose
        vectors and head are gone on from, with a fresh optimizer.
      similarity: for `panda`: sets the similarity instead of measuring it.
      data_dir: folder of the tasks' distribution files; default
        `PANDA_DATA_DIR`, and without that TFDS.
      tfds_data_dir: of TFDS.
      model_dir: the run folder; None writes nothing.
      quiet: show no progress.
      partitioner: how devices are shared out; by default all of them are used
        on accelerators, and one of a CPU's.
      overwrite: files of other origin in `model_dir` that are in the way are
        replaced.
      train_rows: your own rows, in place of a task's: a file's path (CSV, TSV,
        JSON lines, Parquet), a list of dictionaries, or a pandas or a
        `datasets` table. The setting `task` names what they are.
      eval_rows: likewise, to choose and report by; by default a fifth of the
        training rows, by a fixed draw.
      test_rows: likewise, for `evaluate(split="test")`.
      text: of your own rows the fields of the texts.
      label: the field of the answer.
      kind: `classification`, `regression`, `choice` or `tags`; by default what
        the answers look like.
      labels: the classes in the order of their ids; by default in alphabetical
        order, whole numbers by value.
      **settings: the fields of `panda_jax.config.runs.Run`, `task` at least
        where no rows are given.

    Raises:
      UserError: anything of the above that is wrong, missing or does not fit,
        another process that holds `model_dir`, or a loss that becomes NaN or
        Inf.
    """
    if train_rows is not None:
        spec = own.add(
            {"train": train_rows, "validation": eval_rows, "test": test_rows},
            text=text,
            label=label,
            kind=kind,
            labels=labels,
            name=settings.get("task"),
        )
        settings["task"] = spec.name
        if not quiet and distributed.is_main():
            print(own.said(spec), file=sys.stderr)
    named = backbone if isinstance(backbone, str) else backbone.id
    run = runs.make_run(backbone=named, **settings)
    run = runs.left_out(run, several=sources is not None)
    backbone = _loaded(backbone, run)
    where = run_inputs.Where(data_dir, tfds_data_dir, quiet, partitioner)
    folder = None if model_dir is None else pathlib.Path(model_dir)
    prompts = {
        "source": source,
        "teacher": teacher,
        "target_prompt": target_prompt,
        "start": start,
    }
    with contextlib.ExitStack() as held:
        begun = _begin(
            run,
            backbone,
            prompts,
            similarity,
            where,
            folder and Place(folder, held, overwrite),
            sources=sources,
        )
        if isinstance(begun, TrainResult):
            return begun
        lane, data = begun
        fleet = Trainer(
            backbone,
            [lane],
            data.train,
            data.reported,
            selection=data.selection,
            folder=folder and folder / run_folder.CHECKPOINTS,
            quiet=quiet,
            partitioner=partitioner,
        )
        (result,) = fleet.execute()
    if isinstance(result, UserError):
        raise result
    return result


def train_fleet(
    backbone: Backbone | str,
    lanes: Mapping[str, Mapping[str, Any]],
    *,
    out_dir: PathLike | None = None,
    data_dir: PathLike | None = None,
    tfds_data_dir: PathLike | None = None,
    quiet: bool = False,
    partitioner: Partitioner | None = None,
    claimed: bool = False,
) -> dict[str, TrainResult | UserError]:
    """Trains runs of one task together: each is what it would be alone.

    They share the backbone, the task and the settings that shape a step; they
    differ in method (prompt, pot, panda), source, teacher, learning rate,
    schedule, KD weight and seed. Started again on the same `out_dir` they
    resume, and those with a result are left alone.

    Args:
      backbone: loaded, or an id.
      lanes: name -> the arguments of `train` that are this run's own: settings,
        source, teacher, target_prompt, start, similarity.
      out_dir: each run's folder is `out_dir/NAME`; the checkpoints of all are
        in `out_dir/checkpoints`. None writes nothing.
      data_dir: as in `train`, as are `tfds_data_dir`, `quiet` and
        `partitioner`.
      tfds_data_dir: of TFDS.
      quiet: show no progress.
      partitioner: how devices are shared out.
      claimed: nobody else works in `out_dir`, which the caller sees to.

    Returns:
      By name, in the order given, a result, or why a lane failed: one that
      diverges ends alone.

    Raises:
      UserError: a wrong argument, or runs that cannot share a step.
    """
    with contextlib.ExitStack() as held:
        return _train_fleet(
            backbone,
            lanes,
            None if out_dir is None else pathlib.Path(out_dir),
            run_inputs.Where(data_dir, tfds_data_dir, quiet, partitioner),
            None if claimed else held,
        )


def _train_fleet(
    backbone: Backbone | str,
    lanes: Mapping[str, Mapping[str, Any]],
    root: pathlib.Path | None,
    where: run_inputs.Where,
    held: contextlib.ExitStack | None,
) -> dict[str, TrainResult | UserError]:
    """`train_fleet`; what it holds is let go of with `held`."""
    found: dict[str, TrainResult | UserError | None] = {}
    going: dict[str, Lane] = {}
    data = None
    for name, given in lanes.items():
        settings = dict(given)
        prompts = {
            role: settings.pop(role, None)
            for role in ("source", "teacher", "target_prompt", "start")
        }
        similarity = settings.pop("similarity", None)
        named = backbone if isinstance(backbone, str) else backbone.id
        run = runs.make_run(backbone=named, **settings)
        run = runs.left_out(run, several=False)
        backbone = _loaded(backbone, run)
        place = root and Place(root / name, held)
        begun = _begin(run, backbone, prompts, similarity, where, place)
        if isinstance(begun, TrainResult):
            found[name] = begun
            continue
        found[name] = None
        going[name], data = begun
    if data is not None:
        assert not isinstance(backbone, str)
        if root is not None and held is not None and distributed.is_main():
            run_folder.begin_fleet(root, lanes)
        fleet = Trainer(
            backbone,
            list(going.values()),
            data.train,
            data.reported,
            selection=data.selection,
            folder=root and root / run_folder.CHECKPOINTS,
            quiet=where.quiet,
            partitioner=where.partitioner,
        )
        found |= dict(zip(going, fleet.execute(), strict=True))
    return {name: done for name, done in found.items() if done is not None}


def _loaded(backbone: Backbone | str, run: Run) -> Backbone:
    if isinstance(backbone, Backbone):
        holds = backbone.config.dtype
        if run.method != "finetune" and run.dtype not in (None, holds):
            raise UserError(
                f"The loaded backbone computes in {holds}, the run asks for "
                f"dtype {run.dtype!r}: load it with that dtype, or leave the "
                "setting out."
            )
        return backbone
    specs.of_registry(run.task)  # before the weights: a typo is told at once
    dtype = "float32" if run.method == "finetune" else run.dtype
    return load_backbone(backbone, dtype=dtype)


def _begin(
    run: Run,
    backbone: Backbone,
    prompts: dict[str, run_inputs.PromptLike | None],
    similarity: float | None,
    where: run_inputs.Where,
    place: Place | None,
    *,
    sources: source_fusion.SourcesLike | None = None,
) -> TrainResult | tuple[Lane, run_inputs.Data]:
    """A run that is ready to train, with its data; or the result it has.

    Raises:
      UserError: anything that is wrong, missing or does not fit.
    """
    task, text = specs.of_registry(run.task)
    if text and not backbone.text_to_text:
        raise UserError(
            f"Task {run.task!r} is {task!r} from text to text, which the "
            f"encoder {run.backbone!r} does not write. Give --task={task}, or "
            "a T5."
        )
    run = dataclasses.replace(run, task=task)
    given = run_inputs.prompts(prompts, backbone, run.method)
    candidates = run_inputs.candidates(run, backbone, sources, given)
    first = given["source"] or next(iter(candidates.values()), None)
    run = run_inputs.begun_from(run, given["start"])
    if first is not None and run.needs_source:
        run = run.shaped_as(first.prompt.kind, first.prompt.length)
    run = run.for_family(text_to_text=backbone.text_to_text)
    run_inputs.check_needs(run, {**given, "source": first}, similarity)
    if not candidates:  # of which the metric chooses, whatever they weigh
        given["target_prompt"], similarity = run_inputs.weighed(
            run, given["target_prompt"], similarity
        )
    run_inputs.check_readable(run, first, similarity, backbone)
    data = run_inputs.load(run, backbone, where)
    description = run_inputs.describe(
        run, backbone, given, similarity, data, candidates
    )
    main = jax.process_index() == 0
    folder, claim = None, None
    if place is not None:
        folder = place.folder
        paths = {
            **{r: run_inputs.as_path(value) for r, value in prompts.items()},
            "sources": run_inputs.as_paths(sources),
            "data_dir": run_inputs.as_path(where.data_dir),
            "tfds_data_dir": run_inputs.as_path(where.tfds_data_dir),
            "similarity": similarity,
        }
        found = _taken(place, description, run, paths, data)
        if isinstance(found, TrainResult):
            return found
        description, claim = found
    cut = run_inputs.said_cut(run, data)
    if cut and main and not where.quiet:
        print(cut, file=sys.stderr)
    former = identity.former(description)
    if former:
        _warn_of_schedule(run, former[0])
    asked = run
    if former:  # what it had made for it stays
        ends = {name: former[-1][name] for name in ("steps", "epochs")}
        run = dataclasses.replace(run, **ends)
    choice = None
    if candidates:
        choice = _chosen(run, backbone, candidates, given, where, folder)
        given, similarity = _of_choice(
            run, choice, candidates, given, similarity
        )
    needs = _fill_needs(run, backbone, given, similarity, where, folder)
    if choice is not None:
        needs = dataclasses.replace(needs, choice=choice)
        if run.fusion == "late":
            mixture = _teachers(
                run, backbone, choice, candidates, where, folder
            )
            needs = dataclasses.replace(
                needs, teacher=mixture[0][0], mixture=mixture
            )
    lane = Lane(
        asked,
        description["run_id"],
        needs,
        folder,
        writes=main,
        run_hash=identity.run_hash(description),
        claim=claim,
        overwrite=place is not None and place.overwrite,
        cut_rows=data.cut_rows,
        former=tuple(each["run_id"] for each in former),
    )
    return lane, data


def _done(
    folder: pathlib.Path, description: dict[str, Any]
) -> TrainResult | None:
    """What the run has left there, if it is done.

    Raises:
      UserError: the folder is another run's, or its result or prompt is.
    """
    identity.same_run(folder, description)
    done = identity.done_result(folder)
    if done is None:
        return None
    prompt = folder / "prompt"
    if not prompt.exists():  # some process was killed as it replaced it
        ownership.tidy(prompt)
    stored = load_prompt(prompt)
    info = prompt_folders.description(stored.prompt, stored.info)
    identity.check_prompt(done, info, where=str(folder))
    return TrainResult(stored, done, folder)


def _taken(
    place: Place,
    description: dict[str, Any],
    run: Run,
    paths: dict[str, Any],
    data: run_inputs.Data,
) -> TrainResult | tuple[dict[str, Any], Claim | None]:
    """The run's folder made ready, and what the run is by its files.

    Returns:
      The result, where the folder has it; else the description, and what
      holds the folder.
    """
    epoch = max(1, len(data.train) // run.batch_size)
    shorter = identity.shorter_run(place.folder, description, epoch=epoch)
    if shorter is not None:
        description = identity.longer(shorter, description)
    done = None if shorter else _done(place.folder, description)
    if done is not None:
        if jax.process_index() == 0 and place.held is not None:
            run_folder.end(place.folder)
        return done
    # Only now: a start that fails above leaves nothing behind.
    config = runs.as_gin(run, paths)
    claim = _opened(place, description, config, epoch=epoch)
    # Whoever held it a moment ago may have come to an end.
    done = _done(place.folder, description)
    if done is not None:
        return done
    # It goes by the name that its files have, whatever release gave it.
    there = identity.same_run(place.folder, description)
    return there or description, claim


def _warn_of_schedule(run: Run, before: dict[str, Any]) -> None:
    """Says so where a longer run's rates are not those it began with."""
    if run.schedule == "linear":
        warnings.warn(
            f"The run goes on from {before['run_id']!r} with the schedule "
            "linear laid anew over all its steps: the learning rate, which had "
            "fallen to 0, rises again. --schedule=constant goes on as if it "
            "had been that long from the start.",
            RuntimeWarning,
            stacklevel=2,
        )


def _opened(
    place: Place, description: dict[str, Any], config: str, *, epoch: int
) -> Claim | None:
    """Holds the run's folder and makes it ready; process 0 does, for all.

    Raises:
      UserError: in every process, where another holds it or files are in the
        way.
    """
    claim, wrong = None, None
    if jax.process_index() == 0:
        try:
            if place.held is not None:
                claim = run_folder.hold(place.folder, place.held)
            if description.get("went_on") and identity.shorter_run(
                place.folder, description, epoch=epoch
            ):
                run_folder.lengthen(place.folder, description)
            if _done(place.folder, description) is None:
                run_folder.begin(
                    place.folder,
                    description,
                    config,
                    overwrite=place.overwrite,
                )
        except UserError as error:
            wrong = str(error)
    wrong = distributed.from_main(wrong)
    if wrong is not None:
        raise UserError(wrong)
    return claim


def _fill_needs(
    run: Run,
    backbone: Backbone,
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
    where: run_inputs.Where,
    folder: pathlib.Path | None,
) -> Needs:
    """Trains the teacher and the target's prompt where none is given."""
    source, teacher = given["source"], given["teacher"]
    if run.method != "panda":
        return Needs(source=source, start=given["start"])
    if teacher is None and source is not None and run.kd_weight != 0:
        teacher = _nested(
            run,
            backbone,
            where,
            folder and folder / "teacher",
            method="pot",
            source=source,
            prompt_kind=source.prompt.kind,
            prompt_length=source.prompt.length,
        )
    weight, transform = run.kd_weight, None
    if weight is None and run.recipe == "released":
        weight = losses.released_weight(run.kd_beta, run.batch_size)
    if weight is None:
        if similarity is None:
            if source is None:
                raise UserError(
                    f"Recipe {run.recipe!r} weighs the distillation by the "
                    "similarity of source and target: give --source=DIR, or "
                    "--similarity=NUMBER, or --kd_weight=NUMBER."
                )
            (similarity,) = _similarities(
                run,
                backbone,
                {source.info.task: source},
                given["target_prompt"],
                where,
                folder,
            ).values()
        transform = source_fusion.transform_of(run)
        weight = run.kd_lambda * source_fusion.factor(similarity, transform)
        if weight == 0:
            warnings.warn(
                f"The distillation's weight is 0: {run.transfer_metric} is "
                f"{similarity:.4g}, of which {transform!r} makes 0. Give "
                "another --kd_transform, or leave the source out.",
                RuntimeWarning,
                stacklevel=2,
            )
    return Needs(
        source,
        teacher,
        similarity,
        float(weight),
        transform=transform,
        start=given["start"],
    )


def _similarities(
    run: Run,
    backbone: Backbone,
    sources: dict[str, StoredPrompt],
    own: StoredPrompt | None,
    where: run_inputs.Where,
    folder: pathlib.Path | None,
) -> dict[str, float]:
    """Each source's score for the target by the run's metric.

    The target's own prompt is trained where the metric compares with it and
    none is given.
    """
    targets: Any = [run.task]
    # The run's own rows and no more labels.
    budget = run.train_examples or EXAMPLES
    if run.transfer_metric == "first_steps":
        budget = max(1, budget // 2)
    if METRICS[run.transfer_metric].needs_target_prompt:
        own = own or _nested(
            run,
            backbone,
            where,
            folder and folder / "target_prompt",
            method="prompt",
        )
        targets = {run.task: own}
    scores = scoring.score(
        sources=sources,
        targets=targets,
        metrics=(run.transfer_metric,),
        backbone=backbone,
        data_dir=where.data_dir,
        tfds_data_dir=where.tfds_data_dir,
        max_length=run.max_length,
        examples=min(EXAMPLES, budget),
        partitioner=where.partitioner,
    )
    column = scores.values[run.transfer_metric][:, 0]
    return dict(zip(scores.sources, column.tolist(), strict=True))


def _chosen(
    run: Run,
    backbone: Backbone,
    candidates: dict[str, StoredPrompt],
    given: dict[str, StoredPrompt | None],
    where: run_inputs.Where,
    folder: pathlib.Path | None,
) -> dict[str, Any]:
    """Every candidate's score, and the shares of those that are kept.

    Measured once: a run that goes on, perhaps on other devices, takes what it
    chose before.
    """
    path = folder and folder / "choice.json"
    if path is not None and path.exists():
        return _checked_choice(path, candidates)
    scores = _similarities(
        run, backbone, candidates, given["target_prompt"], where, folder
    )
    best = source_fusion.top(scores, run.top_k)
    shares = source_fusion.shares(best, source_fusion.transform_of(run))
    choice = {
        "transfer_metric": run.transfer_metric,
        "fusion": run.fusion,
        # JSON has no NaN; those without a score are not among the best.
        "scores": {
            n: s if math.isfinite(s) else None for n, s in scores.items()
        },
        "shares": dict(zip(best, shares.tolist(), strict=True)),
    }
    if path is not None and jax.process_index() == 0:
        run_folder.write_json(path.parent, path.name, choice)
    return choice


def _checked_choice(
    path: pathlib.Path, candidates: dict[str, StoredPrompt]
) -> dict[str, Any]:
    """What a run chose before.

    Raises:
      UserError: the file is another's.
    """
    choice = read_json(path, what="choice of sources")
    scores, shares = choice.get("scores"), choice.get("shares")
    if (
        not isinstance(scores, dict)
        or not isinstance(shares, dict)
        or not shares
        or not set(shares) <= set(scores) <= set(candidates)
        or not all(isinstance(x, float | None) for x in scores.values())
        or not all(isinstance(scores[name], float) for name in shares)
        or not all(isinstance(x, float) for x in shares.values())
    ):
        raise UserError(
            f"The choice of sources {str(path)!r} is not this run's: delete "
            "it to measure them again."
        )
    return choice


def _of_choice(
    run: Run,
    choice: dict[str, Any],
    candidates: dict[str, StoredPrompt],
    given: dict[str, StoredPrompt | None],
    similarity: float | None,
) -> tuple[dict[str, StoredPrompt | None], float | None]:
    """The one source that those chosen make, and its similarity."""
    shares = choice["shares"]
    if similarity is None and run.method == "panda":
        scores = choice["scores"]
        similarity = sum(share * scores[n] for n, share in shares.items())
    if run.fusion == "late":
        return given, similarity
    kept = [candidates[name] for name in shares]
    source = kept[0]
    if len(kept) > 1:
        source = source_fusion.fused(kept, list(shares.values()))
    return {**given, "source": source}, similarity


def _teachers(
    run: Run,
    backbone: Backbone,
    choice: dict[str, Any],
    candidates: dict[str, StoredPrompt],
    where: run_inputs.Where,
    folder: pathlib.Path | None,
) -> tuple[tuple[StoredPrompt, float], ...]:
    """Late fusion: each chosen source's prompt tuned on the target."""
    return tuple(
        (
            _nested(
                run,
                backbone,
                where,
                folder and folder / f"teacher_{name}",
                method="pot",
                source=candidates[name],
                prompt_kind=candidates[name].prompt.kind,
                prompt_length=candidates[name].prompt.length,
            ),
            share,
        )
        for name, share in choice["shares"].items()
    )


def _nested(
    run: Run,
    backbone: Backbone,
    where: run_inputs.Where,
    folder: pathlib.Path | None,
    *,
    source: StoredPrompt | None = None,
    **changes: Any,
) -> StoredPrompt:
    """A run with this run's settings, as far as it makes use of them."""
    run = runs.trimmed(dataclasses.replace(run, **changes))
    settings = dataclasses.asdict(run)
    del settings["backbone"]
    return train(
        backbone,
        source=source,
        data_dir=where.data_dir,
        tfds_data_dir=where.tfds_data_dir,
        model_dir=folder,
        quiet=where.quiet,
        partitioner=where.partitioner,
        **settings,
    ).prompt
