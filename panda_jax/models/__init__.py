"""The backbones, in Flax Linen; here their names and sizes.

`bert`, and `t5` of `t5_stacks` and `t5_layers`, from `layers` that both share;
`relative` has T5's positions, `decode` writes and ranks answers, `trees` walks
parameters, and `cpu` has what pays on a CPU alone.

May import: the top.
"""

import dataclasses
import types

from panda_jax.errors import unknown_name
from panda_jax.models import bert, t5
from panda_jax.models.bert import BertConfig
from panda_jax.models.t5 import T5Config

_CASED = 28996


def _t5(width: int, layers: int, heads: int, head_dim: int, ffn: int):
    return T5Config(
        width=width,
        layers=layers,
        decoder_layers=layers,
        heads=heads,
        head_dim=head_dim,
        ffn=ffn,
    )


def _t5_1_1(width: int, layers: int, heads: int, ffn: int):
    return dataclasses.replace(
        _t5(width, layers, heads, 64, ffn),
        activation="gelu_new",
        gated=True,
        tied=False,
    )


CONFIGS: dict[str, BertConfig | T5Config] = {
    "minilm-l6": BertConfig(width=384, layers=6, heads=12, ffn=1536),
    "bert-tiny": BertConfig(_CASED, width=128, layers=2, heads=2, ffn=512),
    "bert-mini": BertConfig(_CASED, width=256, layers=4, heads=4, ffn=1024),
    "bert-small": BertConfig(_CASED, width=512, layers=4, heads=8, ffn=2048),
    "bert-medium": BertConfig(_CASED, width=512, layers=8, heads=8, ffn=2048),
    "bert-base": BertConfig(_CASED),
    "bert-large": BertConfig(_CASED, width=1024, layers=24, heads=16, ffn=4096),
    "t5-small": _t5(512, 6, 8, 64, 2048),
    "t5-base": _t5(768, 12, 12, 64, 3072),
    "t5-large": _t5(1024, 24, 16, 64, 4096),
    "t5-3b": _t5(1024, 24, 32, 128, 16384),
    "t5-11b": _t5(1024, 24, 128, 128, 65536),
    "t5_1_1-small": _t5_1_1(512, 8, 6, 1024),
    "t5_1_1-base": _t5_1_1(768, 12, 12, 2048),
    "t5_1_1-large": _t5_1_1(1024, 24, 16, 2816),
    "t5_1_1-xl": _t5_1_1(2048, 24, 32, 5120),
    "t5_1_1-xxl": _t5_1_1(4096, 24, 64, 10240),
}


def config(name: str) -> BertConfig | T5Config:
    """The sizes of a named backbone.

    Raises:
      UserError: no backbone has this name.
    """
    if name not in CONFIGS:
        raise unknown_name("backbone", name, CONFIGS)
    return CONFIGS[name]


Config = BertConfig | T5Config


def is_text_to_text(config: Config) -> bool:
    """Whether a backbone writes its answers, so that no head is needed."""
    return isinstance(config, T5Config)


def prompt_layers(config: Config) -> int:
    """L of a deep prompt: the layers that it stands before."""
    if isinstance(config, T5Config):
        return config.decoder_layers
    return config.layers


def module(config: BertConfig | T5Config) -> types.ModuleType:
    """The module whose `init` and `apply` are this family's."""
    return t5 if isinstance(config, T5Config) else bert
