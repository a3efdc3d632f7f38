#!/usr/bin/env bash
# benchmarks/gpu.sh OUT [--only PARTS] [--resume OLD] [--seconds N] [--dry-run]: builds, tests and
# measures on a GPU, part by part, what tells most first; run it in the repository's root. Rows lie in
# OUT/<part>.jsonl as soon as they are measured, the tables in OUT/gpu.md. --resume takes over the build
# and the rows of an earlier OUT: only what is missing there is measured.
#
# Parts: tests peer-sd15 sd15 peer-sdxl sdxl kernels profile clora throughput sanitize tune. Without
# --only: all but the last two.
#
# It asks no network for anything. Expected to be installed: torch (2.11 with CUDA 13.0 was planned
# for), triton 3.6, transformers, peft, accelerate, safetensors, numpy, psutil, nvcc 13.0, nanobind,
# scikit-build-core, cmake, ninja, and pip. What else is needed comes as wheels in the folder
# wheels/: diffusers (0.40 or newer), and where missing pydantic, rich, pytest and what these need.
set -uo pipefail

usage() {
  echo "usage: benchmarks/gpu.sh OUT [--only PARTS] [--resume OLD] [--seconds N] [--dry-run]" >&2
  exit 2
}
all=tests,peer-sd15,sd15,peer-sdxl,sdxl,kernels,profile,clora,throughput
out= only=$all resume= seconds=480 dry=
while (($#)); do
  case $1 in
    --only) [[ $# -ge 2 ]] || usage; only=$2; shift ;;
    --resume) [[ $# -ge 2 && -d $2 ]] || usage; resume=$2; shift ;;
    --seconds) [[ $# -ge 2 && $2 =~ ^[0-9]+$ ]] || usage; seconds=$2; shift ;;
    --dry-run) dry=1 ;;
    -*) usage ;;
    *) [[ -z $out ]] || usage; out=$1 ;;
  esac
  shift
done
[[ -n $out ]] || usage
for part in ${only//,/ }; do
  [[ ",$all,sanitize,tune," == *",$part,"* ]] || { echo "no part $part" >&2; usage; }
done
python=${PYTHON:-python3}

if [[ -n $dry ]]; then
  [[ -z ${PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python  # what make has set up
  echo "build             the wheel with CMLORA_CUDA=ON for this GPU, and the wheels in wheels/"
  echo "tests             pytest -m gpu tests, at most 100 s"
  "$python" -m cmlora_fast.benchmarks.gpu --dry-run --seconds "$seconds"
  exit
fi

mkdir -p "$out"
exec > >(tee -a "$out/log.txt") 2>&1
started=$SECONDS
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

say() { echo "== $((SECONDS - started)) s: $*"; }
wants() { [[ ",$only," == *",$1,"* ]]; }
left() { echo $((seconds - (SECONDS - started))); }

arch=$("$python" -c "import torch; print('%d%d' % torch.cuda.get_device_capability())") || exit 1
[[ $arch == 90 ]] && arch=90a
sources=$(cat CMakeLists.txt csrc/*/* | sha256sum | cut -c1-16)-$arch
if [[ -n $resume ]]; then
  cp "$resume"/*.jsonl "$resume"/built-*.so "$out"/ 2>/dev/null
fi
say "build"
install=("$python" -m pip install --quiet --no-deps --no-index --no-build-isolation --no-compile --target "$site")
shopt -s nullglob
wheels=(wheels/*.whl)
if ((${#wheels[@]})); then
  "${install[@]}" "${wheels[@]}" || exit 1
fi
export PYTHONPATH="$site:$PWD/python"
if [[ ! -f $out/built-$sources.so ]]; then
  CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "${install[@]}" . -C cmake.define.CMLORA_CUDA=ON \
    -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch-real" -C build-dir="$site/build" || exit 1
  cp "$site"/cmlora_fast/_C*.so "$out/built-$sources.so"
else
  mkdir -p "$site/cmlora_fast"
  cp -rL python/cmlora_fast/. "$site/cmlora_fast/"
  cp "$out/built-$sources.so" "$site/cmlora_fast/_C.abi3.so"
fi

failed=0
if wants tests; then
  say "tests"
  timeout 100 "$python" -m pytest -q -n 8 --dist loadfile -m gpu tests || failed=1
fi
if wants sanitize; then
  say "sanitize"
  timeout 60 compute-sanitizer --error-exitcode 1 "$python" -m pytest -q -m gpu tests/ops/test_gpu.py \
    -k "combine or cache_refresh or norm" || failed=1
fi
# A process each: a peer's choices of algorithms are not ours.
for part in ${only//,/ }; do
  case $part in
    tests | sanitize) continue ;;
    tune)
      say "tune"
      "$python" -m cmlora_fast.benchmarks.gpu.tune --seconds $(($(left) > 120 ? 120 : $(left))) || failed=1
      continue
      ;;
  esac
  if (($(left) < 10)); then
    say "left out: $part"
    continue
  fi
  say "$part"
  timeout $(($(left) > 150 ? 150 : $(left))) "$python" -m cmlora_fast.benchmarks.gpu --out "$out" \
    --only "$part" --seconds $(($(left) > 120 ? 120 : $(left))) >/dev/null || failed=1
done
[[ -f $out/machine.json ]] && "$python" -m cmlora_fast.benchmarks.gpu.report "$out"
say "done"
exit $failed
