#!/bin/sh
# The whole recipe: data, three stages of training, merging, export, Q4_0, evaluation, and the ablation of the balance loss.
#
#     sh run_all.sh                        # two CPU cores, about five hours: stages go on where they were stopped
#     DEVICE=gpu sh run_all.sh             # as the shipped model was trained: a quarter of an hour on one large GPU
#     STEPS=3 CONFIG='{"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 1, "experts": 8, "ffn": 32}' sh run_all.sh  # a rehearsal
#
# Needs the packages of requirements.txt and the smallthinker package. Everything is written to run/ (or $RUN).
set -eu
cd "$(dirname "$0")"
PYTHON=${PYTHON:-python3} RUN=${RUN:-run} CONFIG=${CONFIG:-"{}"} WORKERS=${WORKERS:-2}
case $RUN in /*) ;; *) RUN=$PWD/$RUN ;; esac
if [ "${DEVICE:-cpu}" = gpu ]; then
    # Minutes of the stages, rows per step, tokens of each stage's data, and what the hardware likes.
    BASE=6.5 LONG=0.8 CHAT=1 BATCH=64 LONG_BATCH=16 TOKENS="400e6 40e6 40e6" ABLATION=900 WORKERS=${GPU_WORKERS:-12}
    FAST="--group 4 --dtype bfloat16 --block 256 --muon-experts --flash" LONG_FAST="--group 1 --dtype bfloat16 --block 256 --muon-experts --flash"
else
    BASE=120 LONG=20 CHAT=40 BATCH=8 LONG_BATCH=2 TOKENS="20e6 2e6 5e6" ABLATION=1000
    FAST="" LONG_FAST="--balance-groups 1"
fi
if [ -n "${STEPS:-}" ]; then
    TOKENS="1e5 4e5 1e5" ROWS=16 ABLATION=$STEPS QUICK="--questions 2 --bytes 2000" FEW="--tokens 2e4 --steps 20"
    for_time() { echo "--steps $STEPS"; }
else
    for_time() { echo "--minutes $1"; }
fi
# shellcheck disable=SC2086  # lists of options
stage() { # name, start, options: trains $RUN/name, or goes on with it
    name=$1 start=$2
    shift 2
    [ -f "$RUN/$name/checkpoint.npz" ] && start="--resume"
    "$PYTHON" train.py --out "$RUN/$name" --tokenizer "$RUN/tokenizer.json" $start "$@"
}

[ -d "$RUN/corpora" ] || "$PYTHON" corpora.py --out "$RUN/corpora"
export SMALLTHINKER_CORPORA="$RUN/corpora"
[ -f "$RUN/tokenizer.json" ] || "$PYTHON" tokenizer.py --out "$RUN/tokenizer.json"

# Data. On a GPU training begins while it is made; files are used as they appear.
set -- $TOKENS
data() {
    "$PYTHON" data.py --shards "$RUN/shards" --tokenizer "$RUN/tokenizer.json" --rows "${ROWS:-512}" --workers "$WORKERS" \
        --plan "pretrain:513:$1" "long:2049:$2" "chat:513:$3"
}
if [ "${DEVICE:-cpu}" = gpu ]; then
    data "$@" & sleep 30
else
    [ -d "$RUN/shards/chat" ] || data "$@"
fi

# shellcheck disable=SC2046,SC2086
{
    stage base "--config $(echo "$CONFIG" | tr -d ' ')" --shards "$RUN/shards/pretrain" --batch $BATCH $FAST --decay 0.5 --final 0.1 \
        $(for_time $BASE)
    stage long "--init $RUN/base/checkpoint.npz" --shards "$RUN/shards/long" --mix long --rope-theta 100000 --batch $LONG_BATCH \
        $LONG_FAST --lr 0.25 --decay 0.9 $(for_time $LONG)
    stage chat "--init $RUN/long/checkpoint.npz" --shards "$RUN/shards/chat" --mix chat --prompt-weight 0 --q4 --batch $BATCH $FAST \
        --lr 0.25 --decay 0.9 --final 0.1 --snapshots 4 $(for_time $CHAT)
}
"$PYTHON" merge.py "$RUN"/chat/weights.*.npz --out "$RUN/merged.npz"
"$PYTHON" export.py "$RUN/merged.npz" --out "$RUN/hf" --tokenizer "$RUN/tokenizer.json"
# shellcheck disable=SC2086
"$PYTHON" predictor.py "$RUN/hf" --shards "$RUN/shards/chat" --mix chat ${FEW:-}
"$PYTHON" -m smallthinker convert "$RUN/hf" "$RUN/model.gguf" --type q4_0
# shellcheck disable=SC2086
"$PYTHON" evaluate.py "$RUN/hf" --engine "$RUN/model.gguf" --json "$RUN/scores.json" ${QUICK:-}

# The ablation: equal short runs that differ in the balance loss alone.
small='{"layers":4,"hidden":128,"heads":4,"kv_heads":2,"ffn":64}'
for balance in groups sequence; do
    # shellcheck disable=SC2086
    stage $balance "--config ${ABLATION_CONFIG:-$small}" --balance $balance --shards "$RUN/shards/pretrain" --batch $BATCH $FAST \
        --steps $ABLATION
    "$PYTHON" export.py "$RUN/$balance/checkpoint.npz" --out "$RUN/$balance/hf" --tokenizer "$RUN/tokenizer.json"
    "$PYTHON" -m smallthinker convert "$RUN/$balance/hf" "$RUN/$balance.gguf" --type q4_0
done
"$PYTHON" ablation.py "groups=$RUN/groups" "sequence=$RUN/sequence" --tokenizer "$RUN/tokenizer.json" --out "$RUN/ablation"
"$PYTHON" hitrates.py "$RUN/groups.gguf" "$RUN/sequence.gguf" "$RUN/model.gguf" --json "$RUN/hitrates.json"
"$PYTHON" figures.py "$RUN"/base/log.jsonl "$RUN"/long/log.jsonl "$RUN"/chat/log.jsonl --out "$RUN/loss.png"
"$PYTHON" card.py "$RUN/scores.json" --hit-rates "$RUN/hitrates.json" > "$RUN/card.md"
