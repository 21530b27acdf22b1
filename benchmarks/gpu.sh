#!/usr/bin/env bash
# Everything there is to do on a machine with an NVIDIA GPU: build in place, test, sanitise, measure.
#
#   OUT=somewhere benchmarks/gpu.sh [build] [test] [sanitize] [bench]      no word: all four, in this order
#
# Needs the machine's own PyTorch with CUDA, Triton, nvcc, pybind11, ninja, setuptools and pytest, and no network: wheels
# of what else is missing (hydra-core, omegaconf, antlr4-python3-runtime) are taken from wheels/ where there is such a
# folder. A stage that fails does not keep the next from running; the exit code tells of it. All output goes to $OUT.
#
#   PYTHON    the interpreter (python3)
#   PRESETS   what is measured (gpu,rlhf-7b,grpo-long,dpo,ranking)
#   DTYPES    in what (float32)
#   MATRIX_PRESETS   what of attention and log-probs (gpu-attention,gpu-logprobs), into matrix.json
#   MATRIX_DTYPES    in what (bfloat16)
#   MATRIX_IMPLS     by whom (eager,vectorised,copies,triton,cuda,flash_attn,torch_varlen,trl)
#   IMPLS     by whom (eager,vectorised,compile,triton,cuda; definition and peers can be added)
#   SECONDS_A_ROW   0.3
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-benchmarks/results/gpu}
PYTHON=${PYTHON:-python3}
PRESETS=${PRESETS:-gpu,rlhf-7b,grpo-long,dpo,ranking}
DTYPES=${DTYPES:-float32}
MATRIX_PRESETS=${MATRIX_PRESETS:-gpu-attention,gpu-logprobs}
MATRIX_DTYPES=${MATRIX_DTYPES:-bfloat16}
MATRIX_IMPLS=${MATRIX_IMPLS:-eager,vectorised,copies,triton,cuda,flash_attn,torch_varlen,trl}
IMPLS=${IMPLS:-eager,vectorised,compile,triton,cuda}
SECONDS_A_ROW=${SECONDS_A_ROW:-0.3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
failed=()

# stage NAME LIMIT COMMAND…: output to the terminal and to $OUT/NAME.log; a stage over its limit (seconds) is stopped.
stage() {
  local name=$1 limit=$2
  shift 2
  echo "== $name: $*"
  timeout --signal=INT --kill-after=20 "$limit" "$@" 2>&1 | tee -a "$OUT/$name.log" || failed+=("$name")
}

rlhf() { "$PYTHON" -m rlhf_core.cli "$@"; }

build() {
  : >"$OUT/build.log"
  {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
    nvcc --version | tail -n 2
    "$PYTHON" -c 'import sys, torch, triton; print(sys.version, torch.__version__, triton.__version__, sep="\n")'
  } 2>&1 | tee -a "$OUT/build.log"
  if compgen -G "wheels/*.whl" >/dev/null; then
    stage build 120 "$PYTHON" -m pip install --quiet --no-index --no-deps wheels/*.whl
  fi
  # 1: a build that cannot compile is an error here, not an install without kernels.
  stage build 500 env RLHF_BUILD_EXTENSION=1 \
    "$PYTHON" -m pip install --no-index --no-build-isolation --no-deps --editable .
  stage build 120 "$PYTHON" -m rlhf_core.cli bench list device=cuda
}

test_() {
  : >"$OUT/test.log"
  stage test 550 "$PYTHON" -m pytest -m gpu tests/kernels -q -p no:cacheprovider --durations=5
}

sanitize() {
  : >"$OUT/sanitize.log"
  stage sanitize 120 "$PYTHON" benchmarks/small_cases.py
  local sanitizer
  if ! sanitizer=$(command -v compute-sanitizer); then
    echo "compute-sanitizer is not here" | tee -a "$OUT/sanitize.log"
    return
  fi
  # Without torch's caching allocator every tensor has bounds of its own.
  for tool in memcheck racecheck synccheck; do
    stage sanitize 240 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      "$sanitizer" --tool "$tool" --error-exitcode 9 "$PYTHON" benchmarks/small_cases.py
  done
}

bench() {
  : >"$OUT/bench.log"
  measure results "$PRESETS" "$IMPLS" "$DTYPES" full
  measure matrix "$MATRIX_PRESETS" "$MATRIX_IMPLS" "$MATRIX_DTYPES" full,ragged
}

# measure NAME PRESETS IMPLS DTYPES LENGTHS
# The file is written after every case: what was measured before a limit is kept.
measure() {
  stage bench "${BENCH_LIMIT:-560}" "$PYTHON" -m rlhf_core.cli bench run device=cuda "preset=$2" \
    "impl=$3" "dtype=$4" "lengths=$5" "seconds=$SECONDS_A_ROW" mode=full "out=$OUT/$1.json"
  rlhf bench report "$OUT/$1.json" --format md -o "$OUT/$1.md"
  rlhf bench report "$OUT/$1.json" --format html -o "$OUT/$1.html" # plotly may be missing: then without
}

for word in "${@:-build test sanitize bench}"; do
  for part in $word; do
    case $part in
      build | sanitize | bench) "$part" ;;
      test) test_ ;;
      *)
        echo "error: $part: no such stage; there are: build, test, sanitize, bench" >&2
        exit 1
        ;;
    esac
  done
done

if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all of it is in $OUT"
