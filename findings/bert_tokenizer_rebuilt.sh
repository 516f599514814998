#!/usr/bin/env bash
# transformers 5.24.0 x tokenizers 0.23.3: a BERT's tokenizer.json is not what
# its text is tokenized by.
#
# `AutoTokenizer` takes the pieces from tokenizer.json and makes normalizer and
# pre-tokenizer anew from tokenizer_config.json, whose `do_lower_case` is true
# where it is not written. A cased vocabulary whose normalizer says
# `lowercase: false` and `strip_accents: false` is read in small letters and
# without accents: other ids, and no warning.
#
# Exits 0 while that is so, and 1 once it is not. Needs a package index.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python

cat > "$folder/program.py" <<'PROGRAM'
import json
import pathlib
import sys
import tempfile

import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Ada", "ada", "wrote"]
PIECES += ["notes", "caf\u00e9", "cafe"]
made = tokenizers.Tokenizer(
    models.WordPiece(
        {piece: number for number, piece in enumerate(PIECES)},
        unk_token="[UNK]",
    )
)
# A cased vocabulary that keeps accents, as its file says.
made.normalizer = normalizers.BertNormalizer(
    lowercase=False, strip_accents=False
)
made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
text = "Ada wrote caf\u00e9 notes"
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    made.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    by_file = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    wanted = by_file.encode(text).tokens
    got = transformers.AutoTokenizer.from_pretrained(folder)
    got = got.convert_ids_to_tokens(got(text)["input_ids"])
versions = transformers.__version__, tokenizers.__version__
print("transformers {}, tokenizers {}:".format(*versions))
print("  tokenizer.json:", *wanted)
print("  AutoTokenizer: ", *got)
sys.exit(0 if (got != wanted) == (sys.argv[1] == "otherwise") else 1)
PROGRAM

"$python" -m pip install --quiet transformers==5.24.0 tokenizers==0.23.3
"$python" -W ignore "$folder/program.py" otherwise
