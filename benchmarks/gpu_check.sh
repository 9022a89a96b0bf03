#!/usr/bin/env bash
# Builds fastseg for the GPU of this machine into the current Python environment, tests it, checks
# its memory accesses and measures it:
#
#   benchmarks/gpu_check.sh FOLDER
#
# Logs, tables and JSON go to FOLDER. A step that fails does not stop the next ones, but the exit
# status is then 1. Every step has a time limit; together they stay under nine minutes.
# PYTHON names the interpreter (default: python3). Needs nvcc, cmake, ninja, pybind11, torch and
# pytest; torchvision and pycocotools are compared with where they are installed.
set -u

[ $# -eq 1 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
if compgen -G "fastseg/_C.*.so" > /dev/null; then
  echo "fastseg/_C was built in place and would be tested instead of the new build: remove it" >&2
  exit 2
fi
python=${PYTHON:-python3}
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "torch sees no GPU, or there is no torch: nothing to check" >&2
  exit 2
}
export PYTHONUNBUFFERED=1
failed=0
: > "$out/summary.txt"

# step NAME SECONDS LOG COMMAND...: runs a command under a time limit and notes how it ended.
step() {
  local name=$1 limit=$2 log=$3 begin=$SECONDS status
  shift 3
  echo "== $name"
  echo "== $name: $*" >> "$out/$log"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$out/$log" | tail -n 40
  status=${PIPESTATUS[0]}
  case $status in
    0) status=passed ;;
    124 | 137) status="failed (over its limit of $limit s)" ;;
    *) status="failed (exit status $status)" ;;
  esac
  [ "$status" = passed ] || failed=1
  echo "$name: $status after $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
}

# FASTSEG_CUDA=1: without nvcc the build must fail, not fall back to the CPU.
step build 95 build.log env FASTSEG_CUDA=1 \
  "$python" -m pip install --verbose --no-build-isolation --no-deps --force-reinstall .
# From another folder, where the source tree does not hide the installed package.
step doctor 20 doctor.log env -C "$out" "$python" -m fastseg doctor
step tests 150 tests.log "$python" -m pytest -m gpu -q --continue-on-collection-errors --durations=10

# All kernels of all ops on small inputs, without the peers' kernels. Without torch's caching of
# memory each tensor is an allocation of its own, whose ends the sanitizer knows.
if command -v compute-sanitizer > /dev/null; then
  ops=$(find csrc -name '*_cuda.cu' ! -path 'csrc/core/*' -printf '%f\n' | sed 's/_cuda\.cu$//' | tr '\n' ' ')
  for tool in memcheck racecheck; do
    step "$tool" 70 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m benchmarks $ops --quick --no-graph --against none --device cuda
  done
else
  echo "sanitizer: skipped, compute-sanitizer is not installed" | tee -a "$out/summary.txt"
fi

step benchmarks 130 benchmarks.log "$python" -m benchmarks --device cuda \
  --dtype float32,float16 --seconds 0.3 --json "$out/benchmarks.json" \
  --markdown "$out/benchmarks.md" --plot "$out/benchmarks.png"

echo
cat "$out/summary.txt"
exit $failed
