#!/usr/bin/env bash
# PEFT 0.21.2 x transformers 5.24.0: a prompt without a task type.
#
# `task_type` is None by default. `get_peft_model` then raises `KeyError: None`
# for PROMPT_TUNING. `PeftModel` itself takes the configuration, makes the
# prompt, counts its parameters and saves it, and its outputs are those of the
# model without a prompt.
#
# Exits 0 while that is so, and 1 once it is not. Needs a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cat > "$folder/program.py" <<'PROGRAM'
import sys

import peft
import torch
import transformers

torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
)
settings = {
    "num_virtual_tokens": 5,
    "token_dim": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_transformer_submodules": 1,
}
inputs = {
    "input_ids": torch.randint(1, 60, (4, 12)),
    "attention_mask": torch.ones(4, 12, dtype=torch.long),
}


def outputs(made):
    with torch.no_grad():
        return made(**inputs).last_hidden_state


def fresh():
    torch.manual_seed(1)
    return transformers.BertModel(config).eval()


plain = outputs(fresh())
try:
    peft.get_peft_model(fresh(), peft.PromptTuningConfig(**settings))
    first = "makes a model"
except KeyError as error:
    first = f"raises KeyError: {error}"
named = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", **settings)
assert outputs(peft.get_peft_model(fresh(), named).eval()).shape[1] == 12 + 5
made = peft.PeftModel(fresh(), peft.PromptTuningConfig(**settings)).eval()
vectors = sum(x.numel() for x in made.prompt_encoder.parameters())
second = "something else"
if torch.equal(outputs(made), plain):
    second = "as if there were no prompt"
print(f"transformers {transformers.__version__}, PEFT {peft.__version__}:")
print(f"  without a task type get_peft_model {first}")
print(f"  PeftModel holds a prompt of {vectors} numbers and answers {second}")
expected = "raises KeyError: None", "as if there were no prompt"
sys.exit((first, second) != expected)
PROGRAM

"$python" -m pip install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$python" -W ignore "$folder/program.py"
