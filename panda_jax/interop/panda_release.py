"""Checkpoints of the released PANDA code (P-tuning v2), from torch files.

A checkpoint is the whole model: `prefix_encoder.embedding.weight`
[P, L * 2 * D], viewed as [P, L * 2, H, K] with a layer's keys before its
values; the head, `classifier` or `qa_outputs`; and the frozen encoder under
`bert.`, by which the prompt's backbone is known for certain.  With
`prefix_projection` the embedding is [P, D], and the prompt what two linear
layers with tanh between, `prefix_encoder.trans.0` and `.2`, make of it.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from panda_jax.errors import UserError
from panda_jax.interop import hf_bert, tables, torch_files
from panda_jax.interop.peft import check_shape, in_fp32, linear_head, unfold
from panda_jax.io.files import PathLike
from panda_jax.models.bert import BertConfig
from panda_jax.prompts import Prompt
from panda_jax.types import Params

FILE = "pytorch_model.bin"
VECTORS = "prefix_encoder.embedding.weight"
ENCODER = "bert."
_FIRST, _SECOND = "prefix_encoder.trans.0", "prefix_encoder.trans.2"
_PROJECTION = {
    f"{layer}.{part}"
    for layer in (_FIRST, _SECOND)
    for part in ("weight", "bias")
}
_HEADS = ("classifier", "qa_outputs")


def read(path: PathLike, *, config: BertConfig, params: Params) -> Prompt:
    """The deep prompt [L, 2, P, H, K] and head of a checkpoint.

    Args:
      path: of `pytorch_model.bin`, or the folder that holds it.
      config: the backbone's sizes.
      params: its parameters; the checkpoint's own encoder, where it has one,
        must hold the same numbers.

    Raises:
      UserError: as `torch_files.read`; or a tensor is missing, unknown, of
        another shape, or of another encoder, each by name.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / FILE
    tensors = torch_files.read(path)
    try:
        encoder = {
            name.removeprefix(ENCODER): array
            for name, array in tensors.items()
            if name.startswith(ENCODER)
        }
        rest = {
            name: array
            for name, array in tensors.items()
            if not name.startswith(ENCODER)
        }
        prompt = _prompt(in_fp32(rest), config)
        _check_encoder(encoder, config, params)
    except UserError as error:
        raise UserError(f"The checkpoint {str(path)!r}: {error}.") from None
    return prompt


def _prompt(tensors: Mapping[str, np.ndarray], config: BertConfig) -> Prompt:
    heads = [(f"{name}.weight", f"{name}.bias") for name in _HEADS]
    found = [names for names in heads if {*names} & {*tensors}][:1]
    expected = {VECTORS}.union(*found)
    projected = bool(_PROJECTION & tensors.keys())
    if projected:
        expected |= _PROJECTION
    if set(tensors) != expected:
        raise UserError(
            f"got the tensors {sorted(tensors)} beside the encoder's, "
            f"expected {sorted(expected)}"
        )
    rows = _projected(tensors, config) if projected else tensors[VECTORS]
    P = len(rows) if rows.ndim else 0
    check_shape(VECTORS, rows, (P, config.layers * 2 * config.width))
    head = linear_head(tensors, found[0], config.width) if found else {}
    vectors = unfold(rows, config.layers, config.heads)
    return Prompt(np.ascontiguousarray(vectors), head)


def _projected(
    tensors: Mapping[str, np.ndarray], config: BertConfig
) -> np.ndarray:
    """[P, L * 2 * D]: what the re-parameterising layers make of a prefix."""
    rows, weight = tensors[VECTORS], tensors[f"{_FIRST}.weight"]
    P = len(rows) if rows.ndim else 0
    hidden = len(weight) if weight.ndim else 0
    D, columns = config.width, config.layers * 2 * config.width
    for name, shape in (
        (VECTORS, (P, D)),
        (f"{_FIRST}.weight", (hidden, D)),
        (f"{_FIRST}.bias", (hidden,)),
        (f"{_SECOND}.weight", (columns, hidden)),
        (f"{_SECOND}.bias", (columns,)),
    ):
        check_shape(name, tensors[name], shape)
    with np.errstate(over="ignore", invalid="ignore"):
        inner = np.tanh(rows @ weight.T + tensors[f"{_FIRST}.bias"])
        made = inner @ tensors[f"{_SECOND}.weight"].T
        made += tensors[f"{_SECOND}.bias"]
    return in_fp32({VECTORS: made})[VECTORS]


def _check_encoder(
    encoder: Mapping[str, np.ndarray], config: BertConfig, params: Params
) -> None:
    """Refuses a checkpoint whose frozen encoder is not the backbone."""
    ours = tables.disassemble(params, hf_bert.bert_table(config))
    for name, array in encoder.items():
        if name not in ours:
            if array.dtype.kind == "i":  # a buffer of position ids
                continue
            raise UserError(
                f"its encoder has the tensor {ENCODER + name!r}, the backbone "
                "has none like it"
            )
        check_shape(ENCODER + name, array, ours[name].shape)
        if not np.array_equal(array.astype(ours[name].dtype), ours[name]):
            raise UserError(
                f"tensor {ENCODER + name!r} differs from the backbone's: the "
                "prompt was trained on another one"
            )
