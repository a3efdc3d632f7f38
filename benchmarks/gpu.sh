#!/usr/bin/env bash
# benchmarks/gpu.sh OUT [--dry-run]: builds, tests and measures on a GPU in under nine minutes, and
# leaves gpu.json and log.txt in the folder OUT. Run it in the repository's root.
#
# It asks no network for anything. Expected to be installed: torch (2.11 with CUDA 13.0 was planned
# for), triton 3.6, transformers, peft, accelerate, safetensors, numpy, psutil, nvcc 13.0, nanobind,
# scikit-build-core, cmake, ninja, and pip. What else is needed comes as wheels in the folder
# wheels/: diffusers (0.40 or newer), and where missing pydantic, pytest and what these two need.
set -uo pipefail

if [[ $# -lt 1 || $# -gt 2 || ( $# -eq 2 && $2 != --dry-run ) ]]; then
  echo "usage: benchmarks/gpu.sh OUT [--dry-run]" >&2
  exit 2
fi
out=$1
python=${PYTHON:-python3}

if [[ ${2:-} == --dry-run ]]; then
  [[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python  # what make has set up
  echo "build   the wheel with CMLORA_CUDA=ON for this GPU, and the wheels in wheels/"
  echo "test    pytest -m gpu tests/ops tests/engine/test_gpu_pipelines.py, at most 150 s"
  "$python" -m cmlora_fast.benchmarks.gpu --dry-run
  exit
fi

mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1
started=$SECONDS
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

say() { echo "== $((SECONDS - started)) s: $*"; }

say "build"
install=("$python" -m pip install --quiet --no-deps --no-index --no-build-isolation --target "$site")
shopt -s nullglob
wheels=(wheels/*.whl)
if ((${#wheels[@]})); then
  "${install[@]}" "${wheels[@]}" || exit 1
fi
arch=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") || exit 1
[[ $arch == 90 ]] && arch=90a
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "${install[@]}" . -C cmake.define.CMLORA_CUDA=ON \
  -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch-real" -C build-dir="$site/build" || exit 1
export PYTHONPATH="$site"

failed=0
say "test"
if "$python" -c "import pytest" 2>/dev/null; then
  timeout 150 "$python" -m pytest -q -m gpu tests/ops tests/engine/test_gpu_pipelines.py || failed=1
else
  echo "SKIPPED the tests: no pytest here or in wheels/"
fi
if command -v compute-sanitizer >/dev/null; then
  timeout 60 compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -m gpu tests/ops/test_gpu.py \
    -k "combine or cache_refresh" || failed=1
fi

say "measure"
left=$((500 - (SECONDS - started)))
timeout $((left + 30)) "$python" -m cmlora_fast.benchmarks.gpu --out "$out" \
  --seconds $((left > 60 ? left : 60)) || failed=1
say "done"
exit $failed
