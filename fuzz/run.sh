#!/usr/bin/env bash
# Fuzzes readers one after another: fuzz/run.sh SECONDS [TARGET…]. Builds nothing; see fuzz/README.md.
# Inputs that were found lie in build/fuzz/corpus/TARGET, findings in build/fuzz/findings.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
targets=("$@")
[ $# -gt 0 ] || targets=(safetensors gguf tokenizer chat_template toml jsonl checkpoint)
work=build/fuzz
python3 fuzz/make_seeds.py "$work/seeds"
mkdir -p "$work/findings" "$work/log"
[ -d /dev/shm ] && export TMPDIR=/dev/shm
failed=0
for target in "${targets[@]}"; do
  mkdir -p "$work/corpus/$target" "fuzz/corpus/$target"
  # One process that is restarted after a finding would hide how many there are: it stops instead.
  # TOML's reader writes each refusal to standard error, hence -close_fd_mask.
  start=$(awk '{print $16 + $17}' /proc/$$/stat)  # of children that ended, in 1/100 s
  "$work/bin/fuzz_$target" -max_total_time="$seconds" -max_len=20000 -timeout=1200 -rss_limit_mb=2048 \
    -close_fd_mask=3 -print_final_stats=1 -artifact_prefix="$work/findings/$target-" \
    "$work/corpus/$target" "$work/seeds/$target" "fuzz/corpus/$target" >"$work/log/$target" 2>&1
  code=$?
  used=$((($(awk '{print $16 + $17}' /proc/$$/stat) - start) / 100))
  runs=$(grep -oP 'number_of_executed_units: \K\d+' "$work/log/$target" || true)
  echo "$target: exit $code, ${runs:-?} runs in $used s of processor time, $(ls "$work/corpus/$target" | wc -l) inputs"
  [ $code -eq 0 ] || failed=1
done
exit $failed
