#!/bin/sh
# The protocol core-1.5b.yaml, two processes a GPU, most important targets first. Each target's answers are in OUT/run-TARGET when it
# ends; the same command goes on where an earlier one stopped, or skips what is done. Run from the repository's root.
# usage: experiments/unseen/core-1.5b.sh CLEAN MODEL OUT MINUTES GPUS [more of `all`: --only 'core.seed-0,singular.*', --commit ...]
#        GPUS: 0,1 or so; '' for none
set -u
clean=$1 model=$2 out=$3 minutes=$4 gpus=$5
shift 5
mkdir -p "$out"
[ -e "$out/ranking.json" ] || cp experiments/unseen/results/ranking.json "$out/ranking.json" # that of this base: not made again
echo "{questions: {}, set: []}" >"$out/no-questions.yaml"
python -m experiments.unseen all --protocol experiments/unseen/core-1.5b.yaml --chosen experiments/unseen/results/chosen.yaml \
    --tasks "$clean" --set tasks.unseen.source="$clean/validation" --set model.source="$model" --questions "$out/no-questions.yaml" \
    --packed "$out/packed" --out "$out" --gpus "$gpus" --processes 2 --minutes "$minutes" "$@"
code=$?
ls "$out"/run-*/results-*.tar >"$out/ended.txt" 2>/dev/null || exit $code
rm -rf "$out/told" # of an earlier call
xargs python -m experiments.unseen unpack --packed "$out/told" <"$out/ended.txt"
names=$(ls "$clean"/validation/*.test.jsonl | xargs -n 1 basename | sed 's/.test.jsonl//' | paste -sd, -)
python -m experiments.unseen report --packed "$out/told" --kind letter --only "$names" --ranking "$out/ranking.json" --out "$out/report" &&
    sed -n '/^## Scores/,/^## NLL/p' "$out/report/tables.md"
exit $code # 75: time was over and something is left: the same command again
