"""How PEFT lays out a prompt, and `adapter_config.json`, which says how.

PEFT saves finished vectors, whatever made them: of P_TUNING the outputs of its
MLP or LSTM, of PREFIX_TUNING with `prefix_projection` those of its MLP, of CPT
the embeddings moved, of CARTRIDGE the keys and values.  So the type's name says
where the vectors stand, and all else is in the numbers and shapes.  Only
MULTITASK_PROMPT_TUNING keeps factors, from which a task's vectors are made.

`num_transformer_submodules` 2, of encoder-decoders, differs in what PEFT, as of
0.21, makes of the file.  Of a shallow prompt it holds rows for each stack; the
first alone are used, before the encoder's input (but for multi-task prompts,
whose others stand before the decoder's).  A deep prompt's pairs of keys and
values are laid end to end with themselves and dealt out two a layer, one for
self-attention and one for cross-attention, and the latter is dropped: layer l
of the decoder gets pair 2 l mod L'.  Files written here have an odd number of
pairs L', so that each layer gets its own (one is spare where L is even).

The errors here do not name the folder: whoever knows it adds it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from panda_jax.errors import UserError

SEQ_2_SEQ = "SEQ_2_SEQ_LM"
HEADLESS = "FEATURE_EXTRACTION"
CAUSAL = "CAUSAL_LM"
# Our word for PEFT's null: the file does not say what the model is for.
TASKLESS = "NONE"
# PEFT's task type -> the module of BERT that is its head.
HEADS = {
    "SEQ_CLS": "classifier",
    "TOKEN_CLS": "classifier",
    "QUESTION_ANS": "qa_outputs",
    HEADLESS: None,
    SEQ_2_SEQ: None,
    CAUSAL: None,
    TASKLESS: None,
}
MULTITASK = "MULTITASK_PROMPT_TUNING"
# PEFT's type -> where its vectors stand: before the input, or before the keys
# and values of each layer.
KINDS = {
    "PROMPT_TUNING": "shallow",
    "P_TUNING": "shallow",
    MULTITASK: "shallow",
    "CPT": "shallow",
    "PREFIX_TUNING": "deep",
    "CARTRIDGE": "deep",
}
# The types that are written.
_WRITTEN = {"deep": "PREFIX_TUNING", "shallow": "PROMPT_TUNING"}
_MOST_NAME = 200


def task_type(kind: str, *, head: bool) -> str:
    """PEFT's task type for a prompt of a kind of task.

    Args:
      kind: as in the task's specification.
      head: whether the prompt has one; text-to-text prompts have none.
    """
    if not head:
        return SEQ_2_SEQ
    return {"tags": "TOKEN_CLS", "span": "QUESTION_ANS"}.get(kind, "SEQ_CLS")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an adapter file holds a prompt.

    Attributes:
      kind: `"deep"` or `"shallow"`.
      task_type: PEFT's, or `TASKLESS`.
      length: P.
      width: D of a vector (H * K for a deep prompt).
      pairs: of keys and values in the file, a position; 0 when shallow.
      heads: H; 0 when shallow.
      submodules: the stacks that PEFT takes the model to have.
      multitask: whether the file holds factors of several tasks' prompts.
    """

    kind: str
    task_type: str
    length: int
    width: int
    pairs: int = 0
    heads: int = 0
    submodules: int = 1
    multitask: bool = False

    @property
    def rows(self) -> int:
        """In the file: P, or P for each stack."""
        shallow = self.kind == "shallow"
        return self.length * (self.submodules if shallow else 1)

    @classmethod
    def of(cls, shape: tuple[int, ...], task_type: str) -> "Layout":
        """The layout in which vectors of this shape are written."""
        if len(shape) == 2:
            return cls("shallow", task_type, *shape)
        L, _, P, H, K = shape
        if task_type == SEQ_2_SEQ:
            return cls("deep", task_type, P, H * K, L | 1, H, 2)
        return cls("deep", task_type, P, H * K, L, H)

    def shape(self, layers: int | None = None) -> tuple[int, ...]:
        """The shape of `Prompt.vectors`.

        Args:
          layers: of an encoder-decoder's decoder, which the file does not
            say; other layouts know theirs.

        Raises:
          UserError: the file has fewer pairs than layers.
        """
        if self.kind == "shallow":
            return (self.length, self.width)
        L = self.pairs
        if self.task_type == SEQ_2_SEQ and layers is not None:
            if layers > L:
                raise UserError(
                    f"num_layers is {L}, expected at least {layers}: as many "
                    "as the decoder has"
                )
            L = layers
        return (L, 2, self.length, self.heads, self.width // self.heads)

    def order(self, layers: int) -> list[int]:
        """Which pair of the file is which layer's."""
        return [self.submodules * layer % self.pairs for layer in range(layers)]


def to_config(layout: Layout, *, head: bool) -> dict[str, Any]:
    """The `adapter_config.json` of a layout.

    PEFT reads what is None here from the model that it is given.
    """
    deep = layout.kind == "deep"
    config = {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "modules_to_save": [HEADS[layout.task_type]] if head else None,
        "num_attention_heads": layout.heads if deep else None,
        "num_layers": layout.pairs if deep else None,
        "num_transformer_submodules": layout.submodules,
        "num_virtual_tokens": layout.length,
        "peft_type": _WRITTEN[layout.kind],
        "revision": None,
        "task_type": None if layout.task_type == TASKLESS else layout.task_type,
        "token_dim": layout.width,
    }
    if deep:
        return config | {
            "encoder_hidden_size": layout.width,
            "prefix_projection": False,
        }
    return config | {"prompt_tuning_init": "RANDOM"}


def from_config(config: Mapping[str, Any]) -> Layout:
    """The layout that an `adapter_config.json` describes.

    Raises:
      UserError: it describes something other than a prompt.
    """
    name = config.get("peft_type")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UserError(
            f"peft_type is {name!r}, which panda_jax knows no prompt by; "
            f"expected {', '.join(KINDS)}"
        )
    task = config.get("task_type")
    task = TASKLESS if task is None else task
    if not isinstance(task, str) or task not in HEADS:
        raise UserError(
            f"task_type is {task!r}, expected null or one of "
            f"{', '.join(name for name in HEADS if name != TASKLESS)}"
        )
    P, D = _size(config, "num_virtual_tokens"), _size(config, "token_dim")
    multitask = name == MULTITASK
    stacks = _stacks(config, kind, task)
    if multitask and stacks == 2:
        raise UserError(
            "num_transformer_submodules is 2, expected 1: the second half of "
            f"the rows of {MULTITASK} stands before the decoder's input, and "
            "panda_jax puts a shallow prompt before the encoder's alone; "
            "train it again with num_transformer_submodules=1"
        )
    if kind == "shallow":
        return Layout(kind, task, P, D, submodules=stacks, multitask=multitask)
    L, H = _size(config, "num_layers"), _size(config, "num_attention_heads")
    if D % H:
        raise UserError(f"token_dim {D} is no multiple of the {H} heads")
    return Layout(kind, task, P, D, L, H, stacks)


def base_model(config: Mapping[str, Any]) -> str | None:
    """The backbone that an `adapter_config.json` names, for people to read."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.isprintable():
        return None
    return name[:_MOST_NAME] or None


def _stacks(config: Mapping[str, Any], kind: str, task: str) -> int:
    """How many stacks PEFT takes the model to have.

    Raises:
      UserError: PEFT could not apply a prompt with so many. (Of a prefix with
        one, a T5's cross-attention sees the decoder's own keys.)
    """
    stacks = config.get("num_transformer_submodules")
    if stacks is None:
        return 2 if task == SEQ_2_SEQ else 1
    expected = (1,)
    if task == SEQ_2_SEQ:
        expected = (2,) if kind == "deep" else (1, 2)
    if type(stacks) is not int or stacks not in expected:
        shown = "a null task_type" if task == TASKLESS else task
        raise UserError(
            f"num_transformer_submodules is {stacks!r}, expected "
            f"{' or '.join(map(str, expected))} with {shown}"
        )
    return stacks


def _size(config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{name} is {size!r}, expected a positive integer")
    return size
