#!/usr/bin/env bash
# transformers 5.24.0 x PEFT 0.21.2: PREFIX_TUNING of a BERT classifier raises.
#
# transformers 5.24.0 renames the encoders' forward argument `past_key_values`
# to `cache` and goes on taking the old name. PEFT 0.21.2 looks for the old name
# in the signature, does not find it, and refuses:
#   ValueError: Model does not support past key values which are required for
#   prefix tuning.
# With transformers 5.23.0 the same program gives logits.
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

config = transformers.BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    num_labels=3,
)
model = transformers.BertForSequenceClassification(config)
prefix = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
model = peft.get_peft_model(model, prefix).eval()
tokens = torch.arange(1, 9)[None]
try:
    out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    said = f"logits {list(out.logits.shape)}"
except ValueError as error:
    said = f"ValueError: {error}"
print(f"transformers {transformers.__version__}, PEFT {peft.__version__}:")
print(f"  {said}")
sys.exit(said != sys.argv[1])
PROGRAM

"$python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$python" -W ignore "$folder/program.py" "logits [1, 3]"
"$python" -m pip install --quiet transformers==5.24.0
"$python" -W ignore "$folder/program.py" "ValueError: Model does not support\
 past key values which are required for prefix tuning."
