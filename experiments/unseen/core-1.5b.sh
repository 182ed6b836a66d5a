#!/bin/sh
# The protocol core-1.5b.yaml on one GPU: six processes, which go on where an earlier call stopped. Run from the repository's root.
# usage: experiments/unseen/core-1.5b.sh CLEAN MODEL OUT MINUTES [SEEDS, as a pattern: 0]
set -u
clean=$1 model=$2 out=$3 minutes=$4 seeds=${5:-0} number=0
mkdir -p "$out"
for systems in "core core_factorised core_wider" "core_linearised core_slow core_fast_wide" "core_permuted core_fast core_frozen" \
    "reptile core_narrow core_layer" "abmll pretrained core_blocks" "structured core_wide core_pooled"; do
    number=$((number + 1)) only=
    for system in $systems; do only="$only,$system.seed-$seeds"; done
    python -m experiments.unseen run --protocol experiments/unseen/core-1.5b.yaml --chosen experiments/unseen/results/chosen.yaml \
        --tasks "$clean" --set tasks.unseen.source="$clean/validation" --set model.source="$model" \
        --packed "$out/packed" --out "$out/run-$number" --minutes "$minutes" --only "${only#,}" >"$out/$number.log" 2>&1 &
done
wait
tail -n 3 "$out"/*.log
mkdir -p "$out/told"
python -m experiments.unseen unpack "$out"/run-*/results-*.tar --packed "$out/told"
names=$(ls "$clean"/validation/*.test.jsonl | xargs -n 1 basename | sed 's/.test.jsonl//' | paste -sd,)
python -m experiments.unseen report --packed "$out/told" --kind letter --only "$names" --ranking experiments/unseen/results/ranking.json \
    --out "$out/report"
sed -n '/^## Scores/,/^## NLL/p' "$out/report/tables.md"
