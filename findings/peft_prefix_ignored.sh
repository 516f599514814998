#!/usr/bin/env bash
# transformers 5.24.0 x PEFT 0.21.2: `generate` of a T5 with PREFIX_TUNING
# answers as if there were no prefix, without an error.
#
# transformers 5.24.0 renames the argument `past_key_values` to `cache`. Where
# both are given, the new name wins, with a FutureWarning. `generate` makes an
# empty `cache`, and PEFT 0.21.2 puts its prefix under the old name. A forward
# pass, as in training, still reads the prefix. With transformers 5.23.0
# `generate` reads it, too.
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

STEPS = 6
torch.manual_seed(0)
config = transformers.T5Config(
    vocab_size=60,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_layers=3,
    num_heads=4,
    decoder_start_token_id=0,
)
model = transformers.T5ForConditionalGeneration(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        weight += 0.1 * torch.randn_like(weight)
inputs = {
    "input_ids": torch.randint(2, 60, (16, 8)),
    "attention_mask": torch.ones(16, 8, dtype=torch.long),
}


def generated(model):
    return model.generate(
        **inputs, min_new_tokens=STEPS, max_new_tokens=STEPS, do_sample=False
    )


def by_forward(model):
    """Greedy decoding that reads all that was written anew at each step."""
    ids = torch.zeros(16, 1, dtype=torch.long)
    for _ in range(STEPS):
        out = model(**inputs, decoder_input_ids=ids, use_cache=False)
        logits = out.logits[:, -1]
        logits[:, config.eos_token_id] = -torch.inf  # as min_new_tokens
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


with torch.no_grad():
    plain = generated(model)
    assert torch.equal(plain, by_forward(model))
    prefix = peft.PrefixTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=5,
        num_layers=3,
        token_dim=32,
        num_attention_heads=4,
    )
    model = peft.get_peft_model(model, prefix).eval()
    torch.nn.init.normal_(model.prompt_encoder["default"].embedding.weight)
    expected, got = by_forward(model), generated(model)
assert not torch.equal(expected, plain)
said = "something else"
if torch.equal(got, expected):
    said = "with the prefix"
elif torch.equal(got, plain):
    said = "without the prefix"
print(f"transformers {transformers.__version__}, PEFT {peft.__version__}:")
print(f"  generate answers {said}")
sys.exit(said != sys.argv[1])
PROGRAM

"$python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore "$folder/program.py" "with the prefix"
"$python" -m pip install --quiet transformers==5.24.0
"$python" -W ignore "$folder/program.py" "without the prefix"
