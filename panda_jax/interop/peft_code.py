"""Lines of Python with which others use a prompt folder, for its card.

They are run by `launch/try_peft.py` on each pair of versions that it tries,
and by the tests on the installed one.
"""

from panda_jax.interop import peft_layout
from panda_jax.interop.peft_layout import HEADS, Layout

# PEFT's task type -> the class of transformers that it goes with.
_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    peft_layout.HEADLESS: "AutoModel",
    peft_layout.SEQ_2_SEQ: "AutoModelForSeq2SeqLM",
    peft_layout.CAUSAL: "AutoModelForCausalLM",
    peft_layout.TASKLESS: "AutoModel",
}
# A deep prompt as a cache: the argument has another name from 5.24 on.
_AS_CACHE = """\
rows = saved["prompt_embeddings"].view({P}, {L}, 2, {H}, {K})
layers = rows.permute(1, 2, 3, 0, 4)  # keys and values of each layer
# The argument's name until transformers 5.23, and since.
known = inspect.signature(model.forward).parameters
name = "cache" if "cache" in known else "past_key_values"


def answer(input_ids, attention_mask, token_type_ids):
    batch = len(input_ids)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(
            keys.expand(batch, -1, -1, -1),
            values.expand(batch, -1, -1, -1),
            index,
        )
    ones = attention_mask.new_ones(batch, {P})
    out = model(
        input_ids=input_ids,
        attention_mask=torch.cat([ones, attention_mask], 1),
        token_type_ids=token_type_ids,
        **{{name: cache}},
    )"""
# A shallow prompt as the first of the vectors that the words are.
_AS_WORDS = """\
rows = saved["prompt_embeddings"]


def answer(input_ids, attention_mask, token_type_ids):
    batch = len(input_ids)
    words = model.get_input_embeddings()(input_ids)
    ones = attention_mask.new_ones(batch, {P})
    zeros = token_type_ids.new_zeros(batch, {P})
    out = model(
        inputs_embeds=torch.cat([rows.expand(batch, -1, -1), words], 1),
        attention_mask=torch.cat([ones, attention_mask], 1),
        token_type_ids=torch.cat([zeros, token_type_ids], 1),
    )"""
# Task types with an output for each position -> PEFT's names of them.
PER_TOKEN = {
    "TOKEN_CLS": ("logits",),
    "QUESTION_ANS": ("start_logits", "end_logits"),
    peft_layout.HEADLESS: ("last_hidden_state",),
    peft_layout.CAUSAL: ("logits",),
}
_DECODING = """\
import torch


def generate(input_ids, attention_mask, steps):
    ids = input_ids.new_full(
        (len(input_ids), 1), model.config.decoder_start_token_id
    )
    for _ in range(steps):
        out = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=ids,
            use_cache=False,
        )
        ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
    return ids  # what follows the end of sequence does not count"""


def with_peft(layout: Layout, backbone: str, *, outputs: int) -> str:
    """Loads the prompt in this folder onto `model`, by PEFT.

    Args:
      layout: of the prompt.
      backbone: what transformers loads the backbone by.
      outputs: of the head; 0 for none.
    """
    model = _CLASSES[layout.task_type]
    count = f", num_labels={outputs}" if outputs else ""
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {model}",
            "",
            f"model = {model}.from_pretrained({backbone!r}{count})",
            'model = PeftModel.from_pretrained(model, ".").eval()',
        ]
    )


def without_peft(layout: Layout, backbone: str, *, outputs: int) -> str:
    """Defines `answer`, which gives an encoder's logits, or `out` headless."""
    deep = layout.kind == "deep"
    sizes = {
        "P": layout.length,
        "L": layout.pairs,
        "H": layout.heads,
        "K": layout.width // max(1, layout.heads),
    }
    body = (_AS_CACHE if deep else _AS_WORDS).format(**sizes)
    lines = [
        *(["import inspect", ""] if deep else []),
        "import torch",
        "from safetensors.torch import load_file",
        f"from transformers import AutoModel{', DynamicCache' if deep else ''}",
        "",
        f"model = AutoModel.from_pretrained({backbone!r}).eval()",
        'saved = load_file("adapter_model.safetensors")',
        body,
    ]
    head = HEADS[layout.task_type]
    if not outputs or head is None:
        return "\n".join([*lines, "    return out"])
    read = "out.pooler_output"
    if layout.task_type in PER_TOKEN:
        # A shallow prompt's own positions come first.
        text = "" if deep else f"[:, {layout.length}:]"
        read = f"out.last_hidden_state{text}"
    return "\n".join(
        [
            *lines,
            "    return torch.nn.functional.linear(",
            f"        {read},",
            f'        saved["base_model.{head}.weight"],',
            f'        saved["base_model.{head}.bias"],',
            "    )",
        ]
    )


def decoding() -> str:
    """Defines `generate`, which decodes greedily by PEFT's `model`."""
    return _DECODING
