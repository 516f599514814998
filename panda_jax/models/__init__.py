"""The zoo: backbone names and their sizes."""

from panda_jax.errors import unknown_name
from panda_jax.models.bert import BertConfig

_CASED = 28996

CONFIGS: dict[str, BertConfig] = {
    "minilm-l6": BertConfig(width=384, layers=6, heads=12, ffn=1536),
    "bert-tiny": BertConfig(_CASED, width=128, layers=2, heads=2, ffn=512),
    "bert-mini": BertConfig(_CASED, width=256, layers=4, heads=4, ffn=1024),
    "bert-small": BertConfig(_CASED, width=512, layers=4, heads=8, ffn=2048),
    "bert-medium": BertConfig(_CASED, width=512, layers=8, heads=8, ffn=2048),
    "bert-base": BertConfig(_CASED),
    "bert-large": BertConfig(_CASED, width=1024, layers=24, heads=16, ffn=4096),
}


def config(name: str) -> BertConfig:
    """The sizes of a named backbone.

    Raises:
      UserError: no backbone has this name.
    """
    if name not in CONFIGS:
        raise unknown_name("backbone", name, CONFIGS)
    return CONFIGS[name]
