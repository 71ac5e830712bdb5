#!/usr/bin/env bash
# Amazon reviews of 2014: votes on reviews, one slate per item.
# Usage: examples/amazon_2014.sh [OUTPUT-FOLDER]; it takes a minute or two on two free cores.
set -euo pipefail
raw="$(cd "$(dirname "$0")" && pwd)/raw"
out="${1:-amazon_2014-out}"
mkdir "$out"  # a new folder: nothing is overwritten

# 1. Convert the raw file to slates and inspect them. Posts, items and tickets stay together in a split.
pope convert --from auto "$raw/reviews_Tea.json.gz" "$raw/meta_Tea.json.gz" --feedback shrunk_rate \
    --prompt-template "Write a review. {prompt}" --split-by group --splits 0.5,0,0.5 --seed 8 -o "$out/slates.jsonl"
pope inspect "$out/slates.test.jsonl" --against "$out/slates.train.jsonl" -o "$out/slates.png"

# 2. Log-probabilities. SmolLM2 is a stand-in for the people who wrote these answers; `pope fit-logger` on the training split
#    gives a better logging policy, but takes longer.
pope score "$out/slates.test.jsonl" --model smollm2-135m --how proxy --max-length 96 --cache "$out/cache" \
    -o "$out/scored.jsonl"

# 3. Estimate SmolLM2's value by these votes; with a stand-in and so few slates the verdict is poor.
pope evaluate "$out/scored.jsonl" --policy smollm2=smollm2-135m --utility-transform minmax \
    --cache "$out/cache" -o "$out/evaluation.json"

# 4. Generate its answers.
pope generate "$out/slates.test.jsonl" --model smollm2-135m -n 1 --max-new-tokens 8 --limit 2 \
    -o "$out/generations.jsonl"
