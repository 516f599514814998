"""How PEFT lays out a prompt, and `adapter_config.json`, which says how.

An encoder-decoder (SEQ_2_SEQ_LM) differs in what PEFT, as of 0.21, makes of
the file.  Of a shallow prompt it may hold one copy for each stack; the first
alone is used, before the encoder's input.  A deep prompt's pairs of keys and
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
# PEFT's task type -> the module of BERT that is its head.
HEADS = {
    "SEQ_CLS": "classifier",
    "TOKEN_CLS": "classifier",
    "QUESTION_ANS": "qa_outputs",
    HEADLESS: None,
    SEQ_2_SEQ: None,
}
_MOST_NAME = 200
_KINDS = {"PREFIX_TUNING": "deep", "PROMPT_TUNING": "shallow"}


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
      task_type: PEFT's.
      length: P.
      width: D of a vector (H * K for a deep prompt).
      pairs: of keys and values in the file, a position; 0 when shallow.
      heads: H; 0 when shallow.
      copies: of the P rows in the file.
    """

    kind: str
    task_type: str
    length: int
    width: int
    pairs: int = 0
    heads: int = 0
    copies: int = 1

    @classmethod
    def of(cls, shape: tuple[int, ...], task_type: str) -> "Layout":
        """The layout in which vectors of this shape are written."""
        if len(shape) == 2:
            return cls("shallow", task_type, *shape)
        L, _, P, H, K = shape
        pairs = L | 1 if task_type == SEQ_2_SEQ else L
        return cls("deep", task_type, P, H * K, pairs, H)

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
        step = 2 if self.task_type == SEQ_2_SEQ else 1
        return [step * layer % self.pairs for layer in range(layers)]


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
        "num_transformer_submodules": _submodules(
            layout.kind, layout.task_type
        ),
        "num_virtual_tokens": layout.length,
        "peft_type": {kind: name for name, kind in _KINDS.items()}[layout.kind],
        "revision": None,
        "task_type": layout.task_type,
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
      UserError: it describes something other than a plain prompt or prefix.
    """
    kind = _KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise UserError(
            f"peft_type is {config.get('peft_type')!r}, expected "
            f"{' or '.join(map(repr, _KINDS))}"
        )
    task = config.get("task_type")
    if not isinstance(task, str) or task not in HEADS:
        raise UserError(
            f"task_type is {task!r}, expected one of {', '.join(HEADS)}"
        )
    if config.get("prefix_projection"):
        raise UserError(
            "prefix_projection is true, expected a prefix without the "
            "re-parameterising MLP"
        )
    P, D = _size(config, "num_virtual_tokens"), _size(config, "token_dim")
    copies = _copies(config, kind, task)
    if kind == "shallow":
        return Layout(kind, task, P, D, copies=copies)
    L, H = _size(config, "num_layers"), _size(config, "num_attention_heads")
    if D % H:
        raise UserError(f"token_dim {D} is no multiple of the {H} heads")
    return Layout(kind, task, P, D, L, H)


def base_model(config: Mapping[str, Any]) -> str | None:
    """The backbone that an `adapter_config.json` names, for people to read."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name.isprintable():
        return None
    return name[:_MOST_NAME] or None


def _submodules(kind: str, task: str) -> int:
    """How many stacks PEFT must take the model to have."""
    return 2 if (kind, task) == ("deep", SEQ_2_SEQ) else 1


def _copies(config: Mapping[str, Any], kind: str, task: str) -> int:
    """How often the rows stand in the file.

    Raises:
      UserError: PEFT could not apply a prompt with so many submodules.
    """
    stacks = config.get("num_transformer_submodules")
    if stacks is None:
        stacks = 2 if task == SEQ_2_SEQ else 1
    expected = {_submodules(kind, task)}
    if task == SEQ_2_SEQ:
        expected.add(2)
    if type(stacks) is not int or stacks not in expected:
        raise UserError(
            f"num_transformer_submodules is {stacks!r}, expected "
            f"{' or '.join(map(str, sorted(expected)))} with {task}"
        )
    return stacks if kind == "shallow" else 1


def _size(config: Mapping[str, Any], name: str) -> int:
    size = config.get(name)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"{name} is {size!r}, expected a positive integer")
    return size
