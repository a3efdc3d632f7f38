"""Which implementations this machine has, and which one a call takes."""

import contextlib
import contextvars
import functools
import importlib.metadata
import os
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from .. import _C

NAMES = ("cpu", "cuda", "triton", "torch")
ISAS = tuple(name for name, _, _ in _C.isas())
OLDEST_GPU = (8, 0)  # compute capability of the oldest architecture that CMake compiles for

_BEST_ISA = _C.best_isa()
_forced_isa = contextvars.ContextVar("cmlora_fast_isa", default=None)
_forced_backend = contextvars.ContextVar("cmlora_fast_backend", default=None)

_C.set_fallback_threads(torch.get_num_threads())  # used where torch exports no pool (before 2.10)


def backends() -> dict[str, dict]:
    """Name → ``{"available": bool, "reason": str, "detail": {...}}`` of every backend."""
    return {"cpu": _cpu(), "cuda": _cuda(), "triton": _triton(), "torch": _torch()}


@contextlib.contextmanager
def force(isa: str | None = None, backend: str | None = None) -> Iterator[None]:
    """Run the ops inside with one instruction set or one backend. Nests; ``None`` leaves as is.

    Meant for tests and measurements. An op that has no kernel in the forced backend runs its
    torch twin.

    Raises:
        ValueError: There is no such name.
        RuntimeError: This machine or build does not have it; the message says why.
    """
    chosen = {}
    if isa is not None:
        chosen[_forced_isa] = _isa_index(isa)
    if backend is not None:
        _check_backend(backend)
        chosen[_forced_backend] = backend
    before = {variable: variable.set(value) for variable, value in chosen.items()}
    try:
        yield
    finally:
        for variable, token in before.items():
            variable.reset(token)


def isa() -> int:
    """The instruction set of this call, as ``_C`` counts them."""
    forced = _forced_isa.get()
    return _BEST_ISA if forced is None else forced


def pick(op: str, tensor: Tensor, kernels: Collection[str], *, matmul: bool = False) -> str:
    """The backend that a call of ``op`` on ``tensor`` takes, of ``kernels`` and ``"torch"``.

    ``matmul`` marks ops made of matrix products. Plain C++ loses those to torch's own by 10 to 30
    times, so where the processor has nothing better they run their torch twin.
    """
    forced = _forced_backend.get()
    if forced is None:
        if matmul and tensor.is_cpu and _BEST_ISA == 0 and _forced_isa.get() is None:
            return "torch"
        if tensor.is_cpu:
            return "cpu" if "cpu" in kernels else "torch"
        return _pick_on_gpu(tensor, kernels) if tensor.is_cuda else "torch"
    if forced not in kernels:
        return "torch"
    wants_cpu = forced == "cpu" or (forced == "triton" and _interprets())
    if wants_cpu != tensor.is_cpu or (forced == "cuda" and not _runs_cuda(tensor.get_device())):
        raise RuntimeError(f"{op}: backend {forced!r} does not run on {tensor.device} here")
    return forced


def prefers_triton(table_says: Callable[[], bool]) -> bool:
    """Whether a call that CUDA would take goes to Triton, which a table puts before it."""
    return _forced_backend.get() is None and _has_triton() and table_says()


def launch(kernel: str, backend: str, tensor: Tensor, *arguments) -> None:
    """Run a kernel of ``_C`` on the device of ``tensor``, on its current stream."""
    if backend == "cpu":
        getattr(_C, kernel)(*arguments, isa())
    else:
        device = tensor.get_device()
        stream = torch._C._cuda_getCurrentRawStream(device)
        getattr(_C.cuda, kernel)(*arguments, device, stream)


def _pick_on_gpu(tensor: Tensor, kernels: Collection[str]) -> str:
    if "cuda" in kernels and _runs_cuda(tensor.get_device()):
        return "cuda"
    return "triton" if "triton" in kernels and _has_triton() else "torch"


@functools.cache
def _runs_cuda(device: int) -> bool:
    """Whether our CUDA kernels run on this GPU."""
    if _C.cuda_missing() or device < 0:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_GPU


def _isa_index(name: str) -> int:
    if name not in ISAS:
        raise ValueError(f"force: expected isa of {', '.join(ISAS)}; got {name!r}")
    _, available, reason = _C.isas()[ISAS.index(name)]
    if not available:
        raise RuntimeError(f"force: isa {name!r} is not available: {reason}")
    return ISAS.index(name)


def _check_backend(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"force: expected backend of {', '.join(NAMES)}; got {name!r}")
    entry = backends()[name]
    if not entry["available"]:
        raise RuntimeError(f"force: backend {name!r} is not available: {entry['reason']}")


def _entry(available: bool, reason: str, **detail) -> dict:
    return {"available": available, "reason": reason, "detail": detail}


def _cpu() -> dict:
    chosen = ISAS[isa()]
    pool = _C.current_pool().name
    return _entry(
        True,
        f"C++ kernels, {chosen} on this processor",
        isa=chosen,
        isas={name: reason for name, _, reason in _C.isas()},
        threads=torch.get_num_threads(),
        thread_pool="torch_parallel_for" if pool == "torch" else pool,
    )


def _cuda() -> dict:
    reason = _C.cuda_missing() or _torch_misses_cuda()
    detail = {"torch_cuda": torch.version.cuda, "devices": _devices()}
    return _entry(not reason, reason or "CUDA kernels of this build", **detail)


def _torch_misses_cuda() -> str:
    """Why torch gives our CUDA kernels no tensors to work on; empty if it does."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA (https://pytorch.org lists builds with it)"
    if not torch.cuda.is_available():
        return f"torch, built for CUDA {torch.version.cuda}, sees no GPU"
    if not any(_runs_cuda(device) for device in range(torch.cuda.device_count())):
        return "no GPU of compute capability 8.0 or newer"
    return ""


def _triton() -> dict:
    if not _has_triton():
        return _entry(False, "triton is not installed")
    version = importlib.metadata.version("triton")
    detail = {"version": version, "interpreter": _interprets(), "devices": _devices()}
    if _interprets():
        return _entry(True, f"triton {version}, interpreted (TRITON_INTERPRET=1): slow", **detail)
    if not torch.cuda.is_available():
        return _entry(False, f"triton {version} is installed; torch sees no GPU", **detail)
    return _entry(True, f"triton {version} on {torch.cuda.get_device_name()}", **detail)


def _torch() -> dict:
    return _entry(True, "the torch twins run wherever torch does", version=torch.__version__)


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _interprets() -> bool:
    """Triton reads its own switch when kernels are imported; they must then stay on the CPU."""
    if not _has_triton():
        return False
    import triton

    if hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET") == "1"  # Triton before 3.4
