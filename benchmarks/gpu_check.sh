#!/usr/bin/env bash
# Builds fastseg for the GPU of this machine into the current Python environment, tests it, checks
# its memory accesses and measures it:
#
#   benchmarks/gpu_check.sh FOLDER
#
# Each step writes FOLDER/STEP.log, benchmarks also FOLDER/STEP.json and .md after every case, and
# FOLDER/summary.txt says how the steps ended. A step that fails does not stop the next ones, but the
# exit status is then 1; but nothing follows a failed build. All together take TIME_LIMIT seconds at
# most (default: 530): what matters most comes first, and what no time is left for is skipped.
# PYTHON names the interpreter (default: python3). Needs nvcc, cmake, ninja, pybind11, torch, and for
# the tests also pytest, hypothesis, torchvision and pycocotools; uses pytest-xdist and
# compute-sanitizer where they are installed.
set -u

[ $# -eq 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
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
deadline=$((SECONDS + ${TIME_LIMIT:-530}))
: > "$out/summary.txt"

# step NAME SECONDS COMMAND...: runs a command under a time limit and notes how it ended.
step() {
  local name=$1 limit=$2 log=$out/$1.log begin=$SECONDS left=$((deadline - SECONDS)) status
  shift 2
  if [ $left -lt 10 ]; then
    echo "$name: skipped, no time is left" | tee -a "$out/summary.txt"
    return
  fi
  [ "$limit" -lt $left ] || limit=$left
  echo "== $name: $*" | tee "$log"
  # An interrupt, upon which pytest tells what has failed so far.
  timeout --signal=INT --kill-after=5 "$limit" "$@" >> "$log" 2>&1
  status=$?
  case $status in
    0) status=passed ;;
    124 | 137) status="failed (over its limit of $limit s)" ;;
    *) status="failed (exit status $status)" ;;
  esac
  tail -n 25 "$log"
  echo "$name: $status after $((SECONDS - begin)) s" | tee -a "$out/summary.txt"
}

# measure NAME SECONDS DTYPE BENCHMARK...: times benchmarks, each case for about 0.4 s in all.
measure() {
  local name=$1 limit=$2 dtype=$3
  shift 3
  step "$name" "$limit" "$python" -m benchmarks "$@" --device cuda --dtype "$dtype" --seconds 0.2 \
    --json "$out/$name.json" --markdown "$out/$name.md"
}

# FASTSEG_CUDA=1: without nvcc the build must fail, not fall back to the CPU. What was installed
# before must not be tested in its place.
"$python" -m pip uninstall --yes --quiet fastseg > /dev/null 2>&1
step build 200 env FASTSEG_CUDA=1 \
  "$python" -m pip install --verbose --no-build-isolation --no-deps .
grep --quiet '^build: passed' "$out/summary.txt" || exit 1
# From another folder, where the source tree does not hide the installed package.
step doctor 30 env -C "$out" "$python" -m fastseg doctor

# All kernels of all ops on small inputs, without the peers' kernels, beside the tests. Without
# torch's caching of memory each tensor is an allocation of its own, whose ends the sanitizer knows.
if command -v compute-sanitizer > /dev/null; then
  kernels=$(find csrc -name '*_cuda.cu' ! -path 'csrc/core/*' -printf '%f\n' | sed 's/_cuda\.cu$//')
  for tool in memcheck racecheck synccheck; do
    step "$tool" 170 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m benchmarks $kernels --quick --no-graph --against none --device cuda &
  done
else
  echo "sanitizers: skipped, compute-sanitizer is not installed" | tee -a "$out/summary.txt"
fi
workers=()
"$python" -c 'import xdist' 2> /dev/null && workers=(-n 6 --dist worksteal)
# The benchmarks below do what the deselected test does.
step tests 170 env OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=1 "$python" -m pytest -m gpu -q \
  --durations=15 "${workers[@]}" --continue-on-collection-errors \
  --deselect tests/test_benchmarks.py::test_quick_run_on_the_gpu
wait

# The time of each kernel, ops that have the peers' kernels to compare with first; those whose peers
# run on the CPU, which takes seconds a call, last. coco_eval needs no GPU.
floats=(roi_align nms ms_deform_attn masked_attention deform_conv paste_masks resize_masks
  panoptic_map attention_mask point_sample semantic_map)
bits=(pack_masks mask_iou mask_nms matrix_nms rle panoptic_eval)
models=(mask_rcnn mask2former solov2 mask2former_loss)
measure ops 130 float16 "${floats[@]}" "${bits[@]}"
measure models 90 float16 "${models[@]}"
measure ops-float32 130 float32 "${floats[@]}"
measure models-float32 90 float32 "${models[@]}"

echo
cat "$out/summary.txt"
! grep --quiet --invert-match ': passed' "$out/summary.txt"
