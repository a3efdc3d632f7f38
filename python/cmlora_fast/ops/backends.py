"""Which implementations this machine has, and which one a call takes."""

import contextlib
import contextvars
import functools
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

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

    An op that has no kernel in the forced backend runs its torch twin.

    Raises:
        ValueError: There is no such name.
        RuntimeError: This machine or build does not have it; the message says why.
    """
    index = None if isa is None else _isa_index(isa)
    if backend is not None:
        check_backend(backend)
    with _holding(_forced_isa, index), using(backend):
        yield


def using(backend: str | None) -> AbstractContextManager:
    """As ``force``, for a backend that ``check_backend`` has passed: an engine's, at every step."""
    return _holding(_forced_backend, backend)


@contextlib.contextmanager
def _holding(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    if value is None:
        yield
        return
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def check_backend(name: str, names: Sequence[str] = NAMES) -> None:
    """Refuse a backend that is none of ``names``, or that this machine or build does not have.

    Raises:
        ValueError: There is no such name.
        RuntimeError: It is not available; the reason is that of ``backends()``.
    """
    if name not in names:
        raise ValueError(f"backend: expected one of {', '.join(names)}; got {name!r}")
    if reason := missing(name):
        raise RuntimeError(f"backend {name!r} is not available: {reason}")


def missing(name: str) -> str:
    """Why this machine or build does not have a backend; empty where it does."""
    reasons = {"cuda": _cuda_missing, "triton": _triton_missing}
    return reasons[name]() if name in reasons else ""


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
    if not _takes(forced, tensor):
        raise RuntimeError(f"{op}: backend {forced!r} does not run on {tensor.device} here")
    return forced


def launch(kernel: str, backend: str, tensor: Tensor, *arguments) -> None:
    """Run a kernel of ``_C`` on the device of ``tensor``, on its current stream."""
    if backend == "cpu":
        getattr(_C, kernel)(*arguments, isa())
    else:
        device = tensor.get_device()
        stream = torch._C._cuda_getCurrentRawStream(device)
        getattr(_C.cuda, kernel)(*arguments, device, stream)


def _takes(backend: str, tensor: Tensor) -> bool:
    if backend == "cuda":
        return tensor.is_cuda and _runs_cuda(tensor.get_device())
    return tensor.is_cpu == (backend == "cpu" or _interprets())


def _pick_on_gpu(tensor: Tensor, kernels: Collection[str]) -> str:
    if "cuda" in kernels and _runs_cuda(tensor.get_device()):
        return "cuda"
    return "triton" if "triton" in kernels and _triton_version() else "torch"


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


def _entry(name: str, reason: str, **detail) -> dict:
    """``reason``: what there is, where nothing is missing."""
    why_not = missing(name)
    return {"available": not why_not, "reason": why_not or reason, "detail": detail}


def _cpu() -> dict:
    chosen = ISAS[isa()]
    pool = _C.current_pool().name
    return _entry(
        "cpu",
        f"C++ kernels, {chosen} on this processor",
        isa=chosen,
        isas={name: reason for name, _, reason in _C.isas()},
        threads=torch.get_num_threads(),
        thread_pool="torch_parallel_for" if pool == "torch" else pool,
    )


def _cuda() -> dict:
    detail = {"torch_cuda": torch.version.cuda, "devices": _devices()}
    return _entry("cuda", "CUDA kernels of this build", **detail)


def _cuda_missing() -> str:
    if reason := _C.cuda_missing():
        return reason
    if torch.version.cuda is None:
        return "this torch is built without CUDA (https://pytorch.org lists builds with it)"
    if not torch.cuda.is_available():
        return f"torch, built for CUDA {torch.version.cuda}, sees no GPU"
    if not any(_runs_cuda(device) for device in range(torch.cuda.device_count())):
        return "no GPU of compute capability 8.0 or newer"
    return ""


def _triton() -> dict:
    version = _triton_version()
    if not version:
        return _entry("triton", "")
    detail = {"version": version, "interpreter": _interprets(), "devices": _devices()}
    where = f"on {', '.join(detail['devices'])}"
    if _interprets():
        where = "interpreted (TRITON_INTERPRET=1): slow"
    return _entry("triton", f"triton {version}, {where}", **detail)


def _triton_missing() -> str:
    version = _triton_version()
    if not version:
        return "triton is not installed"
    seen = _interprets() or torch.cuda.is_available()
    return "" if seen else f"triton {version} is installed; torch sees no GPU"


def _torch() -> dict:
    return _entry("torch", "the torch twins run wherever torch does", version=torch.__version__)


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


@functools.cache
def _triton_version() -> str:
    """Empty without Triton."""
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


@functools.cache
def _interprets() -> bool:
    """Triton reads its own switch when kernels are imported; they must then stay on the CPU."""
    if not _triton_version():
        return False
    import triton

    if hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET") == "1"  # Triton before 3.4
