"""Backbones from and to Hugging Face folders; `config.json` says which kind."""

import pathlib
from typing import Any

from panda_jax.errors import UserError
from panda_jax.interop import hf_bert, hf_t5, tables, weights
from panda_jax.interop.folders import json_inside
from panda_jax.interop.hf_layouts import CONFIG
from panda_jax.interop.tensors import SINGLE
from panda_jax.interop.tensors import save as save_tensors
from panda_jax.io.files import atomic_file, write_json
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config
from panda_jax.types import Params

_T5_KINDS = ("t5", "mt5")


def load(folder: pathlib.Path) -> tuple[Params, BertConfig | T5Config]:
    """Parameters (fp32, numpy) and sizes of a folder.

    The models are BERT, DistilBERT and ELECTRA, alone or with heads around
    them, T5 and mT5.  The weights are safetensors or `pytorch_model.bin`, in
    one file or in shards; fp32, fp16 or bf16.

    Raises:
      UserError: a file is missing, damaged, of another architecture or leads
        out of the folder; a tensor does not fit.
    """
    kind = _raw_config(folder).get("model_type")
    if kind in hf_bert.KINDS:
        return load_bert(folder)
    if kind in _T5_KINDS:
        return load_t5(folder)
    known = ", ".join(map(repr, (*hf_bert.KINDS, *_T5_KINDS)))
    raise UserError(
        f"{str(folder / CONFIG)!r}: model_type is {kind!r}; this version reads "
        f"{known}."
    )


def sizes(folder: pathlib.Path) -> BertConfig | T5Config:
    """Of a folder's backbone, by its `config.json`; no weights are needed.

    Where there are weights their names say whether there is a pooler.

    Raises:
      UserError: as `load`.
    """
    raw = _raw_config(folder)
    path = str(folder / CONFIG)
    if raw.get("model_type") not in hf_bert.KINDS:
        return hf_t5.t5_config(raw, path=path)
    config = hf_bert.bert_config(raw, path=path)
    if not weights.are_in(folder):
        return config
    return hf_bert.with_pooler(config, weights.read_folder(folder))


def load_bert(folder: pathlib.Path) -> tuple[Params, BertConfig]:
    """`load`, of a BERT or its like; `UserError` for another."""
    raw = _raw_config(folder)
    config = hf_bert.bert_config(raw, path=str(folder / CONFIG))
    tensors = weights.read_folder(folder)
    config = hf_bert.with_pooler(config, tensors)
    return hf_bert.bert_params(tensors, config, path=str(folder)), config


def load_t5(folder: pathlib.Path) -> tuple[Params, T5Config]:
    """`load`, of a T5 or mT5 folder; `UserError` for another."""
    raw = _raw_config(folder)
    config = hf_t5.t5_config(raw, path=str(folder / CONFIG))
    path = str(folder)
    tensors = hf_t5.encoder_decoder(
        weights.read_folder(folder), raw, config, path=path
    )
    return hf_t5.t5_params(tensors, config, path=path), config


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
