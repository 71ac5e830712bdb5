#!/usr/bin/env bash
# A spreadsheet saved as CSV: one answer per row, stars as feedback, one slate per ticket.
# Usage: examples/spreadsheet.sh [OUTPUT-FOLDER]; it takes a minute or two on two free cores.
set -euo pipefail
raw="$(cd "$(dirname "$0")" && pwd)/raw"
out="${1:-spreadsheet-out}"
mkdir "$out"  # a new folder: nothing is overwritten

# 1. Convert the raw file to slates and inspect them. Posts, items and tickets stay together in a split.
pope convert --from table "$raw/answers.csv" \
    --map prompt=Question,completion=Answer,score=Stars,key=Ticket,responder=Agent \
    --split-by group --group column:Ticket --splits 0.5,0,0.5 --seed 3 -o "$out/slates.jsonl"
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
