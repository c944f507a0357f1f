#!/usr/bin/env bash
# shellcheck disable=SC2164,SC2329  # the stages are called by name, under set -e
#
# Everything that needs a GPU, in one command of under 8 minutes, without network and without gmfast
# being installed. Without a GPU it says so and runs what it can.
#
#   benchmarks/gpu_check.sh OUT
#
# The python in use (PYTHON, else python3, else .venv/bin/python) needs torch, pybind11, cmake and ninja;
# pytest and hypothesis for the tests. The build goes to a scratch folder. OUT gets summary.txt (the
# machine, then PASS, FAIL or SKIP of each stage), a log of each stage, bench.csv and bench.png. A stage
# that fails does not stop the next; the exit status is 1 if any failed.
set -uo pipefail

if (($# != 1)); then
  echo "usage: benchmarks/gpu_check.sh OUT" >&2
  exit 2
fi
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)

has_torch() { "$1" -c 'import torch' 2> /dev/null; }
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} ]] && ! has_torch python3; then python=$repo/.venv/bin/python; fi
if ! has_torch "$python"; then
  echo "gpu_check: $python cannot import torch; name a Python that can with PYTHON=..." >&2
  exit 2
fi
python=$("$python" -c 'import sys; print(sys.executable)')
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
site=$scratch/site
PATH=$(dirname "$python"):$PATH # cmake and ninja of that python first
if [[ -z ${GMFAST_COMMIT:-} ]]; then
  GMFAST_COMMIT=$(git -C "$repo" describe --always --abbrev=12 --exclude '*' --dirty=+ 2> /dev/null || true)
fi
export repo out python gpu scratch site PATH GMFAST_COMMIT PYTHONPATH=$site
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
export HYPOTHESIS_STORAGE_DIRECTORY=$scratch/hypothesis PYTHONDONTWRITEBYTECODE=1

# ---- Stages: functions that run in a shell of their own, where any failing command ends them -------

skip() {
  echo "$*"
  exit 77
}

# Where Python finds the package built here, and no other.
enter() {
  [[ -e $scratch/built ]] || { echo "nothing was built"; exit 1; }
  cd "$site"
}

machine() {
  echo "gpu      ${gpu:-none}"
  if [[ -n $gpu ]]; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true; fi
  echo "cpu      $(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
  echo "nvcc     $(nvcc --version 2> /dev/null | sed -n 's/.*release //p' || true)"
  "$python" -c 'import platform, torch; print(f"python   {platform.python_version()}\ntorch    {torch.__version__}")'
  echo "commit   ${GMFAST_COMMIT:-unknown}"
  echo "date     $(date -u '+%Y-%m-%d %H:%M UTC')"
}

build() {
  for tool in cmake ninja; do
    command -v "$tool" > /dev/null || { echo "$tool was not found beside $python or on PATH"; exit 1; }
  done
  cmake -S "$repo" -B "$scratch/build" -G Ninja -DPython_EXECUTABLE="$python"
  cmake --build "$scratch/build"
  mkdir "$site"
  cp -rL "$repo/gmfast" "$site/gmfast"
  find "$site/gmfast" -name '*.so' -delete
  cmake --install "$scratch/build" --prefix "$site/gmfast"
  cd "$site"
  "$python" -c '
import os, sys, gmfast
from gmfast import _library
print(gmfast.doctor())
if not gmfast.__file__.startswith(os.environ["site"]):
    sys.exit(f"not the package built here: {gmfast.__file__}")
if _library._C is None:
    sys.exit("the compiled library does not load")
if os.environ["gpu"] and "cuda" not in _library.devices:
    sys.exit("there is a GPU, but no CUDA kernels were built")'
  touch "$scratch/built"
  echo "built and imported, $(nproc) cores"
}

tests() {
  [[ -n $gpu ]] || skip "no GPU"
  enter
  local workers=()
  if "$python" -c 'import xdist' 2> /dev/null; then workers=(-n 6); fi
  "$python" -m pytest -c "$repo/pyproject.toml" --rootdir "$repo" -p no:cacheprovider --maxfail 20 \
    "${workers[@]}" --device=cuda "$repo/tests/ops"
}

sanitizer() {
  [[ -n $gpu ]] || skip "no GPU"
  command -v compute-sanitizer > /dev/null || skip "no compute-sanitizer on PATH"
  enter
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # every tensor an allocation of its own, whose end is guarded
  local tool pids=() code=0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" gmfast/benchmarks/gpu_kernels.py check \
      > "$scratch/$tool.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || code=1; done
  tail -n 200 "$scratch/memcheck.log" "$scratch/racecheck.log"
  if ((code)) && grep -q 'Device not supported' "$scratch"/{memcheck,racecheck}.log; then
    skip "compute-sanitizer: Device not supported"
  fi
  return "$code"
}

graphs() {
  [[ -n $gpu ]] || skip "no GPU"
  enter
  "$python" gmfast/benchmarks/gpu_kernels.py graphs
}

decode() {
  [[ -n $gpu ]] || skip "no GPU"
  enter
  "$python" gmfast/benchmarks/gpu_decode.py check
  "$python" gmfast/benchmarks/gpu_decode.py times
}

bench() {
  enter
  "$python" -c '
import os
from gmfast.benchmark import main
device = "cuda" if os.environ["gpu"] else "cpu"
main(out=os.environ["out"], device=device, quick=device == "cpu", seconds=0.7 * float(os.environ["limit"]),
     targets=True)'
}

export -f skip enter machine build tests sanitizer graphs decode bench

# ---- One stage after the other, all within the deadline --------------------------------------------

deadline=460
failed=0

stage() {
  local name=$1 start=$SECONDS code=0 verdict log=$out/$1.log
  export limit=$(($2 < deadline - SECONDS ? $2 : deadline - SECONDS))
  if ((limit < 5)); then
    echo "no time left" > "$log"
    code=1
  else
    timeout -k 10 "$limit" bash -euo pipefail -c "$name" > "$log" 2>&1 || code=$?
  fi
  case $code in
    0) verdict=PASS ;;
    77) verdict=SKIP ;;
    124 | 137)
      verdict=FAIL
      echo "stopped after $limit s" >> "$log"
      ;;
    *) verdict=FAIL ;;
  esac
  if [[ $verdict == FAIL ]]; then
    failed=1
    tail -n 20 "$log"
  fi
  if [[ $name == machine ]]; then # its log is the head of the summary
    cat "$log"
    rm "$log"
    printf '%s  %-9s  %3d s\n' "$verdict" "$name" $((SECONDS - start))
  else
    printf '%s  %-9s  %3d s  %s\n' "$verdict" "$name" $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c 1-200)"
  fi | tee -a "$out/summary.txt"
}

: > "$out/summary.txt"
if [[ -z $gpu ]]; then
  echo "no GPU here: only the build, the import and the quick CPU benchmark run" | tee -a "$out/summary.txt"
fi
stage machine 20
stage build 240
stage tests 140
stage sanitizer 90
stage graphs 40
stage decode 60
stage bench 180
exit $failed
