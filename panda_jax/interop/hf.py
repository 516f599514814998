"""Backbones from and to Hugging Face folders; `config.json` says which kind."""

import pathlib
from typing import Any

from panda_jax.errors import UserError
from panda_jax.interop import hf_bert, hf_t5, tables
from panda_jax.interop.folders import json_inside
from panda_jax.interop.tensors import SINGLE, read_folder
from panda_jax.interop.tensors import save as save_tensors
from panda_jax.io.files import atomic_file, write_json
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.types import Params

CONFIG = "config.json"


def load(folder: pathlib.Path) -> tuple[Params, BertConfig | T5Config]:
    """Parameters (fp32, numpy) and sizes of a BERT, T5 or mT5 folder.

    The weights are `model.safetensors`, or the shards that
    `model.safetensors.index.json` names; fp32, fp16 or bf16.

    Raises:
      UserError: a file is missing, damaged, of another architecture or leads
        out of the folder; a tensor does not fit.
    """
    kind = _raw_config(folder).get("model_type")
    if kind == "bert":
        return load_bert(folder)
    if kind in ("t5", "mt5"):
        return load_t5(folder)
    raise UserError(
        f"{str(folder / CONFIG)!r}: model_type is {kind!r}; this version reads "
        "'bert', 't5' and 'mt5'."
    )


def sizes(folder: pathlib.Path) -> BertConfig | T5Config:
    """Of a folder's backbone, by its `config.json`; no weights are needed.

    Raises:
      UserError: as `load`.
    """
    raw = _raw_config(folder)
    path = str(folder / CONFIG)
    if raw.get("model_type") == "bert":
        return hf_bert.bert_config(raw, path=path)
    return hf_t5.t5_config(raw, path=path)


def load_bert(folder: pathlib.Path) -> tuple[Params, BertConfig]:
    """`load`, of a BERT folder; `UserError` for another."""
    raw = _raw_config(folder)
    config = hf_bert.bert_config(raw, path=str(folder / CONFIG))
    tensors = read_folder(folder)
    return hf_bert.bert_params(tensors, config, path=str(folder)), config


def load_t5(folder: pathlib.Path) -> tuple[Params, T5Config]:
    """`load`, of a T5 or mT5 folder; `UserError` for another."""
    raw = _raw_config(folder)
    config = hf_t5.t5_config(raw, path=str(folder / CONFIG))
    tensors = hf_t5.with_head(read_folder(folder), raw)
    return hf_t5.t5_params(tensors, config, path=str(folder)), config


def save(
    folder: pathlib.Path, params: Params, config: BertConfig | T5Config
) -> None:
    """Writes `config.json` and `model.safetensors` that transformers loads.

    Raises:
      UserError: the backbone has no Hugging Face form.
    """
    if isinstance(config, T5Config):
        table, raw = hf_t5.t5_table(config), hf_t5.t5_json(config)
    else:
        table, raw = hf_bert.bert_table(config), hf_bert.bert_json(config)
    arrays = tables.disassemble(params, table)
    with atomic_file(folder / SINGLE) as temporary:
        save_tensors(temporary, arrays)
    write_json(folder / CONFIG, raw)


def _raw_config(folder: pathlib.Path) -> dict[str, Any]:
    return json_inside(folder, CONFIG, what="backbone configuration")
