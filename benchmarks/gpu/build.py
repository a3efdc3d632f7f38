"""Compile every CUDA and Triton kernel without a GPU: registers, spills and shared memory of each.

python -m cmlora_fast.benchmarks.gpu.build --arch 90

Fails where a kernel does not compile, a hot one spills registers, or one needs more shared memory
than a block has. Needs nvcc for the one half and triton for the other; what is missing is skipped
aloud.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
CUDA_ARCHES, TRITON_ARCHES = (80, 90, 100), (80, 90)
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # of a block at most
PTXAS_KERNEL = re.compile(r"Compiling entry function '(\w+)'.*?\n(.*?)(?=Compiling entry|\Z)", re.S)


@dataclass(frozen=True)
class Report:
    """What ptxas says of one kernel; ``shared`` is the static part in CUDA C++."""

    source: str
    kernel: str
    arch: int
    registers: int
    spills: int  # bytes, stores and loads
    shared: int

    @property
    def hot(self) -> bool:
        """All but Triton's float32, whose three products per tile have no registers to spare."""
        return "float32" not in self.kernel

    @property
    def bad(self) -> bool:
        return (self.hot and self.spills > 0) or self.shared > SHARED_BYTES[self.arch]


def compile_cuda(source: Path, arch: int, nvcc: str, folder: Path) -> list[Report]:
    suffix = "a" if arch >= 90 else ""  # as in csrc/cuda/build.cmake
    flags = ["-std=c++17", "-O3", f"-I{SOURCES}", f"-arch=sm_{arch}{suffix}", "-Xptxas", "-v"]
    cubin = folder / f"{source.stem}.{arch}.cubin"
    command = [nvcc, *flags, "-cubin", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name}, sm_{arch}:\n{done.stderr[-3000:]}")
    return [
        _read(source.name, _short_name(name), arch, text)
        for name, text in PTXAS_KERNEL.findall(done.stderr)
    ]


def _read(source: str, kernel: str, arch: int, text: str) -> Report:
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    static = re.search(r"(\d+) bytes smem", text)
    registers = int(re.search(r"Used (\d+) registers", text)[1])
    return Report(source, kernel, arch, registers, spills, int(static[1]) if static else 0)


def _short_name(mangled: str) -> str:
    """``lora_delta_kernel<Float16, true>`` out of its mangled form."""
    name, arguments = re.search(r"\d+([a-z_]+_kernel)(?:I(.*?)EEv)?", mangled).groups()
    found = re.findall(r"\d+(B?Float16)E|^(f)|(5uint4)|^([tj])$|Lb([01])", arguments or "")
    names = {
        "f": "float",
        "5uint4": "uint4",
        "t": "uint16",
        "j": "uint32",
        "0": "false",
        "1": "true",
    }
    return f"{name}<{', '.join(names.get(x, x) for x in map(''.join, found))}>"


def compile_triton(case: tuple[str, str, int, dict], arch: int) -> Report:
    """A kernel of triton_kernels by module, with element type, ranks and block sizes."""
    import triton
    from triton.backends.compiler import GPUTarget

    from .triton_cases import name_of, source_of

    module, dtype, rank, config = case
    source, options = source_of(module, dtype, rank, config)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends/nvidia/bin"
        command = [str(tools / "cuobjdump"), "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Nothing but spilled registers lies on the stack of a Triton kernel.
    registers, stack = (int(re.search(rf"{n}:(\d+)", usage)[1]) for n in ("REG", "STACK"))
    shared = compiled.metadata.shared
    return Report(f"{module}.py", name_of(case), arch, registers, stack, shared)


def find_nvcc() -> str | None:
    """On the path, where CUDA is installed, or from the wheel nvidia-cuda-nvcc."""
    candidates = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    try:
        import nvidia

        candidates += sorted(
            str(p) for root in nvidia.__path__ for p in Path(root).glob("cu*/bin/nvcc")
        )
    except ImportError:
        pass
    return next((path for path in candidates if path and Path(path).exists()), None)


def jobs(arches: list[int] | None, nvcc: str | None, folder: Path, quick: bool):
    """(function, arguments) of everything to compile; None: for CUDA_ARCHES and TRITON_ARCHES."""
    if nvcc:
        for source in sorted((SOURCES / "cuda").glob("*.cu")):
            yield from ((compile_cuda, (source, a, nvcc, folder)) for a in arches or CUDA_ARCHES)
    if importlib.util.find_spec("triton"):
        from .triton_cases import cases

        yield from ((compile_triton, (c, a)) for c in cases(quick) for a in arches or TRITON_ARCHES)


def build(arches: list[int] | None, quick: bool) -> tuple[list[Report], list[str]]:
    """Reports, and what failed."""
    reports, failures = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # an old result would compile nothing
        os.environ.pop("TRITON_INTERPRET", None)
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
            work = list(jobs(arches, find_nvcc(), Path(folder), quick))
            for future in [pool.submit(function, *arguments) for function, arguments in work]:
                try:
                    found = future.result()
                    reports += found if isinstance(found, list) else [found]
                except Exception as error:
                    failures.append(str(error))
    failures += [f"{r.kernel}, sm_{r.arch}: spills or shared memory" for r in reports if r.bad]
    return reports, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, action="append", choices=list(SHARED_BYTES))
    parser.add_argument("--quick", action="store_true", help="one half-precision type of two")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (SOURCES / "cuda").is_dir():
        parser.error(f"needs a checkout of the sources; {SOURCES} holds none")
    reports, failures = build(args.arch, args.quick)
    if args.json:
        print(json.dumps({"kernels": [asdict(r) for r in reports], "failures": failures}, indent=1))
    else:
        print(f"{'kernel':66} {'sm':>4} {'registers':>9} {'spills':>7} {'shared':>7}")
        for r in reports:
            print(f"{r.kernel:66} {r.arch:4} {r.registers:9} {r.spills:7} {r.shared:7}")
    if find_nvcc() is None:
        print("SKIPPED the CUDA kernels: no nvcc (pip install nvidia-cuda-nvcc)", file=sys.stderr)
    if importlib.util.find_spec("triton") is None:
        print("SKIPPED the Triton kernels: triton is not installed", file=sys.stderr)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
