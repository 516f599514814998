"""Prompts on disk: the prompt folder and the bank of prompt folders.

A prompt folder holds `adapter_model.safetensors` (fp32) and
`adapter_config.json` in PEFT's layout, and `panda.json`, which says what the
prompt was trained on and on which backbone.  A prompt of length 0 (a head
alone) has no PEFT form and so no `adapter_config.json`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from panda_jax import fields
from panda_jax.config import registry
from panda_jax.errors import UserError, unknown_name
from panda_jax.interop import peft, peft_layout
from panda_jax.interop.folders import json_inside
from panda_jax.interop.peft import CONFIG, TENSORS
from panda_jax.interop.peft_layout import Layout
from panda_jax.io import ownership
from panda_jax.io.files import PathLike, write_json
from panda_jax.models import trees
from panda_jax.prompts import Prompt
from panda_jax.tasks import own, specs

FORMAT_VERSION = 1
INFO = "panda.json"
FILES = (INFO, TENSORS, CONFIG)
# No model has more, and without a position a file may claim any number.
_MOST_LAYERS = 1 << 10


@dataclasses.dataclass(frozen=True)
class PromptInfo:
    """What a prompt is: the content of `panda.json`.

    Attributes:
      task: the task that it was trained on.
      backbone: id of the backbone, for people; of a prompt that is bound to
        none, what its file says or None.
      fingerprint: hash of the backbone's weights, for the check on loading;
        None where it is not bound to a backbone: it was imported without one
        and can be stored, exported and compared, not used.
      backbone_folder: where the backbone lay when the prompt was made, an
        absolute path; None of one that has a name. Stays out of exports.
      tokenizer_fingerprint: of the backbone's tokenizer, checked likewise;
        None where the file does not say, as those of 0.1.
      kind: `"deep"` or `"shallow"`.
      method: prompt, pot, panda or finetune; `import-FORMAT` of a prompt from
        elsewhere.
      recipe: of method panda: paper, released or kl.
      source: the source prompt of pot and panda.
      seed: of the run.
      data_fingerprint: hash of the training data.
      max_length: longest text in word pieces that it was trained on.
      scores: metric -> value on the development split.
      labels: class names in the order of the head's outputs.
      versions: package -> version that trained it.
      own_task: what the task is, where its rows are the user's own (see
        `panda_jax.tasks.own`); None of all others.
      task_type: PEFT's, of a prompt from elsewhere; None follows from the
        kind of the task.
    """

    task: str
    backbone: str | None
    fingerprint: str | None
    kind: str
    method: str
    recipe: str | None = None
    source: str | None = None
    seed: int = 0
    data_fingerprint: str | None = None
    max_length: int | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    labels: list[str] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    task_type: str | None = None
    backbone_folder: str | None = None
    tokenizer_fingerprint: str | None = None
    own_task: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object, with the format's version first."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PromptInfo":
        """The inverse of `to_json`; further keys are ignored.

        Raises:
          UserError: another format version, or a field of a wrong type.
        """
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"format_version is {version!r}, expected {FORMAT_VERSION}: "
                "use the version of panda_jax that wrote it, or a newer one"
            )
        value = registry.present(value)
        said: dict[str, Any] = {}
        for name, field in fields.of(cls).items():
            said[name] = value.get(name)
            if not fields.fits(said[name], *field.options):
                raise UserError(
                    f"{name} is {said[name]!r}, expected {field.words}"
                )
        if said["task_type"] not in (None, *peft_layout.HEADS):
            raise UserError(
                f"task_type is {said['task_type']!r}, expected null or one "
                f"of {', '.join(peft_layout.HEADS)}"
            )
        if said["fingerprint"] is not None and said["backbone"] is None:
            raise UserError(
                f"fingerprint is {said['fingerprint']!r} and backbone None, "
                "expected both of a prompt that is bound to a backbone"
            )
        return cls(**said)


@dataclasses.dataclass(frozen=True)
class StoredPrompt:
    """A prompt with its description.

    Attributes:
      prompt: NumPy arrays, fp32.
      info: what it is.
      path: its folder, or None where it was never on disk.
    """

    prompt: Prompt
    info: PromptInfo
    path: pathlib.Path | None = None


def content_hash(prompt: Prompt) -> str:
    """16 hex digits over the names, shapes and fp32 bytes of a prompt."""
    return trees.content_hash(_arrays(prompt))


def save_prompt(
    folder: PathLike,
    prompt: Prompt,
    info: PromptInfo,
    *,
    overwrite: bool = False,
    by: str = "save_prompt",
    more: Callable[[pathlib.Path], None] | None = None,
) -> StoredPrompt:
    """Writes a prompt folder, whole or not at all.

    What this wrote there before is replaced; all else stays.

    Args:
      folder: where.
      prompt: device or host arrays; stored as fp32.
      info: its description; `info.kind` must be the prompt's.
      overwrite: files in the way are replaced, whoever wrote them.
      by: the verb whose files they are.
      more: writes further files to the folder, which are part of it.

    Raises:
      UserError: a NaN or an infinity in the prompt or among its scores; or
        files in the way, by name.
    """
    with ownership.replacing(
        folder, by, overwrite=overwrite, removes=True
    ) as new:
        stored = write_prompt(new, prompt, info, named=folder)
        if more is not None:
            more(new)
    return dataclasses.replace(stored, path=pathlib.Path(folder))


def write_prompt(
    folder: pathlib.Path,
    prompt: Prompt,
    info: PromptInfo,
    *,
    named: PathLike | None = None,
) -> StoredPrompt:
    """Writes a prompt's files to a folder that is being made.

    Args:
      folder: where.
      prompt: as `save_prompt` takes it.
      info: likewise.
      named: what the folder will be, for the message.

    Raises:
      UserError: a NaN or an infinity in the prompt or among its scores.
    """
    if info.kind != prompt.kind:
        raise ValueError(f"{info.kind=} for a {prompt.kind} prompt")
    arrays = _arrays(prompt)
    bad = [name for name, a in arrays.items() if not np.isfinite(a).all()]
    bad += [name for name, x in info.scores.items() if not np.isfinite(x)]
    if bad:
        raise UserError(
            f"The prompt for {str(named or folder)!r} has NaN or infinite "
            f"values in {', '.join(bad)}: its training diverged. Lower the "
            "learning rate."
        )
    stored = Prompt(
        arrays["vectors"], {k: arrays[k] for k in sorted(prompt.head)}
    )
    layout = layout_of(stored.vectors.shape, info, head=bool(stored.head))
    peft.write_folder(folder, stored, layout)
    write_json(folder / INFO, description(stored, info))
    return StoredPrompt(stored, info, folder)


def description(prompt: Prompt, info: PromptInfo) -> dict[str, Any]:
    """The content of a prompt's `panda.json`."""
    return info.to_json() | {
        "prompt_shape": list(prompt.vectors.shape),
        "content_hash": content_hash(prompt),
    }


def layout_of(
    shape: tuple[int, ...], info: PromptInfo, *, head: bool
) -> Layout:
    """How PEFT's files hold a prompt with these vectors.

    Args:
      shape: of its vectors.
      info: its description; without a task type, that of its task decides,
        and tasks that nobody registered count as classification.
      head: whether it has one.
    """
    known = info.task in specs.names()
    kind = specs.get(info.task).kind if known else "classification"
    task_type = info.task_type or peft_layout.task_type(kind, head=head)
    return Layout.of(shape, task_type)


def load_prompt(
    folder: PathLike,
    *,
    fingerprint: str | None = None,
    backbone: str | None = None,
) -> StoredPrompt:
    """Reads a prompt folder, or the `prompt/` of a run folder.

    Args:
      folder: the prompt folder or run folder.
      fingerprint: of the backbone that the prompt is for; None does not check.
      backbone: that backbone's id, for the error message.

    Raises:
      UserError: a file is missing, damaged, of another format or disagrees
        with the others, or the prompt belongs to another backbone.
    """
    folder = pathlib.Path(folder)
    path = _prompt_folder(folder)
    if path is None:
        state = "holds no prompt" if folder.is_dir() else "does not exist"
        raise UserError(
            f"The prompt folder {str(folder)!r} {state}: expected {INFO}, "
            f"{TENSORS} and {CONFIG} in it, or in its 'prompt' folder. Train "
            "a prompt or give the folder of one."
        )
    try:
        value = _json(path, INFO, what="prompt description")
        info = PromptInfo.from_json(value)
        check_backbone(info, fingerprint, backbone)
        prompt = _read_prompt(path, value, info)
        if info.own_task is not None:
            own.adopt(info.own_task)
    except UserError as error:
        raise UserError(
            f"Prompt folder {str(path)!r}: {str(error).rstrip('.')}."
        ) from None
    return StoredPrompt(prompt, info, path)


def is_bank(folder: PathLike) -> bool:
    """Whether a folder holds prompt folders and is none itself."""
    folder = pathlib.Path(folder)
    if not folder.is_dir() or _prompt_folder(folder) is not None:
        return False
    return any(
        _prompt_folder(path) is not None
        for path in folder.iterdir()
        if not path.name.startswith(".")
    )


class PromptBank:
    """Prompts by name: a folder of prompt folders and run folders.

    A prompt is read when it is first asked for.  Iterating gives the
    `StoredPrompt`s in the order of `names`; `bank["mrpc"]` looks among the
    folder names first and then for the one prompt of that task.

    Args:
      path: the folder.  Hidden folders and those without a prompt are left
        out; of a run folder `X` its `X/prompt` is the prompt `X`.

    Raises:
      UserError: no such folder, or no prompt in it; later, on reading, a
        damaged prompt folder, named in the message.
    """

    def __init__(self, path: PathLike):
        path = self.path = pathlib.Path(path)
        if not path.is_dir():
            raise UserError(f"The prompt bank {str(path)!r} does not exist.")
        found = {p.name: _prompt_folder(p) for p in sorted(path.iterdir())}
        self._paths = {
            name: folder
            for name, folder in found.items()
            if folder and not name.startswith(".")
        }
        if not self._paths:
            alone = _prompt_folder(path) is not None
            raise UserError(
                f"The prompt bank {str(path)!r} holds no prompt folders"
                + (
                    " but is one itself: give the folder above it."
                    if alone
                    else ": expected one folder a prompt, or one a run."
                )
            )
        self._loaded: dict[str, StoredPrompt] = {}

    @classmethod
    def of(cls, prompts: Mapping[str, StoredPrompt]) -> "PromptBank":
        """A bank in memory."""
        bank = cls.__new__(cls)
        bank.path = None
        bank._paths = {}
        bank._loaded = {name: prompts[name] for name in sorted(prompts)}
        return bank

    @property
    def names(self) -> list[str]:
        """The folder names, sorted."""
        return sorted(self._paths or self._loaded)

    def _load(self, name: str) -> StoredPrompt:
        if name not in self._loaded:
            self._loaded[name] = load_prompt(self._paths[name])
        return self._loaded[name]

    def read(self, name: str) -> StoredPrompt:
        """A prompt by its folder's name, read anew and not kept here."""
        return self._loaded.get(name) or load_prompt(self._paths[name])

    def items(self) -> Iterator[tuple[str, StoredPrompt]]:
        """Name and prompt, sorted by name."""
        return ((name, self._load(name)) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[StoredPrompt]:
        return (prompt for _, prompt in self.items())

    def __getitem__(self, name: str) -> StoredPrompt:
        if name in self.names:
            return self._load(name)
        matches = [n for n, stored in self.items() if stored.info.task == name]
        if len(matches) > 1:
            raise UserError(
                f"The bank has {len(matches)} prompts of task {name!r}: say "
                f"which of {', '.join(matches)}."
            )
        if not matches:
            raise unknown_name("prompt", name, self.names)
        return self._load(matches[0])


def _arrays(prompt: Prompt) -> dict[str, np.ndarray]:
    arrays = {"vectors": prompt.vectors, **prompt.head}
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}


def _prompt_folder(folder: pathlib.Path) -> pathlib.Path | None:
    """`folder` or its `prompt/`, whichever holds a file of a prompt."""
    for path in (folder, folder / "prompt"):
        if any((path / name).is_file() for name in FILES):
            return path
    return None


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """The file; refuses a link that leads out of the folder."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"{name} is missing: store the prompt again")
    if path.is_symlink() and path.resolve().parent != folder.resolve():
        raise UserError(
            f"{name} is a link to outside the folder: put a copy in its place"
        )
    return path


def _json(folder: pathlib.Path, name: str, *, what: str) -> dict[str, Any]:
    """The JSON object of a file of the folder."""
    return json_inside(folder, _inside(folder, name).name, what=what)


def check_backbone(
    info: PromptInfo,
    fingerprint: str | None,
    backbone: str | None,
    tokenizer: str | None = None,
) -> None:
    """Refuses a prompt that was trained on other weights, or on unknown ones.

    Args:
      info: of the prompt.
      fingerprint: of the backbone that is to be used; None does not check.
      backbone: that backbone's id, for the message.
      tokenizer: fingerprint of that backbone's tokenizer; None does not check.

    Raises:
      UserError: the fingerprints differ; names both backbones.  Or the prompt
        is not bound to a backbone.
    """
    if fingerprint is None:
        return
    if info.fingerprint == fingerprint:
        known = info.tokenizer_fingerprint
        if None not in (known, tokenizer) and known != tokenizer:
            raise UserError(
                f"The prompt of task {info.task!r} was trained under another "
                f"tokenizer ({known}) than backbone {backbone!r} has "
                f"({tokenizer}); the weights are the same. Put the tokenizer "
                f"that {info.backbone!r} had back into its folder, or train "
                "the prompt again."
            )
        return
    trained_on = bound_backbone(info)
    loaded = f"{backbone!r} " if backbone else ""
    raise UserError(
        f"The prompt of task {info.task!r} was trained on backbone "
        f"{trained_on!r} (weights {info.fingerprint}), got backbone "
        f"{loaded}(weights {fingerprint}): load {trained_on!r} with the "
        "weights it was trained on, or train the prompt again on this one."
    )


def bound_backbone(info: PromptInfo) -> str:
    """The id of the backbone that a prompt is bound to.

    Raises:
      UserError: it was imported without one, which it takes to use a prompt.
    """
    if info.backbone is None or info.fingerprint is None:
        said = f" (its file names {info.backbone!r})" if info.backbone else ""
        raise UserError(
            f"The prompt of task {info.task!r} is not bound to a backbone"
            f"{said}: it was imported without one and can only be stored, "
            "exported and compared. Import it again with --backbone=DIR, the "
            "backbone that it was trained on."
        )
    return info.backbone


def backbone_place(info: PromptInfo) -> str:
    """The id or folder under which `load_backbone` finds a prompt's backbone.

    From wherever it is asked for: a folder was named from where it was trained.

    Raises:
      UserError: as `bound_backbone`.
    """
    name, folder = bound_backbone(info), info.backbone_folder
    if folder is None or (os.path.isdir(name) and not os.path.isdir(folder)):
        return name
    return folder


def _read_prompt(
    path: pathlib.Path, value: dict[str, Any], info: PromptInfo
) -> Prompt:
    """Reads the tensors and holds them against both JSON files."""
    kind, shape = info.kind, value.get("prompt_shape", [])
    if not fields.fits(shape, list[int]) or not _is_shape(kind, shape):
        raise UserError(
            f"prompt_shape is {shape!r} and kind {kind!r}, expected "
            "[L, 2, P, H, K] for 'deep' or [P, D] for 'shallow'"
        )
    tensors = peft.read_tensors(_inside(path, TENSORS))
    layout = layout_of(tuple(shape), info, head=len(tensors) > 1)
    if layout.length:
        config = _json(path, CONFIG, what="adapter config")
        layout = peft_layout.from_config(config)
        described = list(layout.shape(shape[0]))
        if described != shape:
            raise UserError(
                f"{CONFIG} describes a prompt of shape {described}, {INFO} one "
                f"of {shape}: restore the files or store the prompt again"
            )
    prompt = peft.from_tensors(tensors, layout, layers=shape[0])
    outputs = len(prompt.head["bias"]) if prompt.head else 0
    if outputs and len(value["labels"]) not in (0, outputs):
        raise UserError(
            f"the head has {outputs} outputs for the labels {value['labels']}"
        )
    if content_hash(prompt) != value.get("content_hash"):
        raise UserError(
            f"the tensors hash to {content_hash(prompt)}, {INFO} says "
            f"{value.get('content_hash')}: one of the files was changed; "
            "restore them or store the prompt again"
        )
    return prompt


def _is_shape(kind: str, shape: list[int]) -> bool:
    """Whether vectors can be of this shape; P may be 0, and a head be all."""
    match kind, shape:
        case "deep", [L, 2, P, H, K]:
            return 0 < L <= _MOST_LAYERS and P >= 0 and min(H, K) > 0
        case "shallow", [P, D]:
            return P >= 0 and D > 0
    return False
