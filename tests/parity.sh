#!/bin/sh
# Compares the greedy tokens of the Rust, C and Python interfaces:
#
#     tests/parity.sh MODEL.gguf PYTHON
#
# PYTHON is an interpreter that has the package installed.
set -eu

model=$(realpath "$1")
python=$2
cd "$(dirname "$0")/.."
lib="${CARGO_TARGET_DIR:-$PWD/target}/debug"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

cargo build -q -p smallthinker-examples
cargo rustc -q -p smallthinker-ffi --lib --crate-type cdylib
cc -std=c11 -Iinclude -o "$out/c" tests/c/test_api.c -L"$lib" -Wl,-rpath,"$lib" -lsmallthinker -lpthread -lm

count=0
for prompt in "Once upon a time" "What is 12 plus" "The dog" "One day, the king" "<|im_start|>user" "Ünïcödé 123"; do
    "$lib/generate" --ids "$model" "$prompt" 48 2>/dev/null | tr -s ' \n' '\n' | sed '/^$/d' > "$out/rust.ids"
    "$out/c" "$model" "$prompt" 48 | tr -s ' \n' '\n' | sed '/^$/d' > "$out/c.ids"
    "$python" - "$model" "$prompt" > "$out/python.ids" <<'PY'
import sys
import smallthinker
with smallthinker.Model(sys.argv[1]) as model:
    print(*model.generate(sys.argv[2], max_tokens=48).tokens, sep="\n")
PY
    cmp "$out/rust.ids" "$out/c.ids"
    cmp "$out/rust.ids" "$out/python.ids"
    # A prompt may be a finished text, which the model ends at once.
    [ ! -s "$out/rust.ids" ] || count=$((count + 1))
done
if [ "$count" -lt 3 ]; then
    echo "only $count prompts were continued" >&2
    exit 1
fi
echo "$count prompts: the same tokens in Rust, C and Python"
