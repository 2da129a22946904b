#!/bin/sh
# Runs every test of the project:
#
#     sh tests/run.sh
#
# Needs Rust, Python 3.11 or later with venv, a C and a C++ compiler and pkg-config; fetches the rest from the package
# registries into target/. About 15 minutes on two cores.
set -eu

cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
export CARGO_INCREMENTAL=0
python=${PYTHON:-python3}
venv="$CARGO_TARGET_DIR/test-venv"
model=smallthinker-py/python/smallthinker/models/smallthinker-tiny.gguf

step() { printf '\n==> %s\n' "$*"; }

step "Format and lints"
cargo fmt --all --check
cargo clippy --workspace --all-targets --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --exclude smallthinker-py --no-deps --quiet

step "Rust tests"
cargo test --workspace --exclude smallthinker-py --quiet

step "Every order of the expert cache's threads"
RUSTFLAGS="--cfg smallthinker_loom" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom" \
    cargo test -p smallthinker-core --lib --quiet model_check

step "C interface"
"$python" -m venv --clear "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt
sh tests/c/run.sh "$model"
CMAKE="$venv/bin/cmake" sh tests/c/install_test.sh "$model"

step "Python package"
"$venv/bin/pip" install --quiet --disable-pip-version-check ./smallthinker-py
"$venv/bin/python" -m pytest tests/python

step "The same tokens from Rust, C and Python"
sh tests/parity.sh "$model" "$venv/bin/python"
