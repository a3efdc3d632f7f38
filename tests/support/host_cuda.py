"""The kernels of csrc/cuda compiled for the CPU, where a block's threads take turns.

They run as they are; what stands in for CUDA is in tests/cuda_host. Ops look like those of
``ops.reference``, on tensors that lie in memory full of NaN: reading past one shows.
"""

import ctypes
import shutil
import subprocess
from ctypes import c_bool, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from cmlora_fast.ops import reference
from cmlora_fast.ops._check import DTYPES

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "tests" / "cuda_host"
MARGIN = 64  # elements


def build(folder):
    """The library, or None without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    kernels = [path for path in sorted((ROOT / "csrc/cuda").glob("*.cu")) if not _is_host(path)]
    sources = [*kernels, STUBS / "host_cuda.cpp", STUBS / "exports.cpp"]
    library = folder / "libhost_cuda.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-I{STUBS}", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *flags, "-x", "c++", *map(str, sources), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(library))


def _is_host(path):
    return path.stem in ("device", "status")  # they ask the driver


class Matrix(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("col_stride", c_int64)]


class RowTable(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("slots", "row_ptr", "row_slot", "row_scale")] + [
        (name, c_int64) for name in ("slot_count", "rows", "entries", "total_rank")
    ]


class LoraDelta(ctypes.Structure):
    _fields_ = [
        *[("y", c_void_p), ("x", c_void_p), ("a", Matrix), ("b", Matrix), ("table", RowTable)],
        *[(name, c_int64) for name in ("tokens", "K", "N", "y_row_stride", "y_token_stride")],
        *[("x_row_stride", c_int64), ("x_token_stride", c_int64), ("dtype", c_int)],
    ]


class LoraFold(ctypes.Structure):
    _fields_ = [
        *[("out", c_void_p), ("w", c_void_p), ("a", Matrix), ("b", Matrix), ("table", RowTable)],
        *[("K", c_int64), ("N", c_int64), ("w_stride", c_int64), ("dtype", c_int)],
    ]


class CacheRefresh(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("cache", "fresh", "rows")],
        *[(name, c_int64) for name in "SRCHW"],
        *[("cache_strides", c_int64 * 3), ("fresh_strides", c_int64 * 3)],
        ("element_size", c_int64),
    ]


class Combine(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("out", "noise", "weights")],
        *[(name, c_int64) for name in "GJBCHW"],
        *[("out_strides", c_int64 * 4), ("noise_strides", c_int64 * 5)],
        *[("per_pixel", c_bool), ("guided", c_bool), ("guidance_scale", c_float)],
        ("dtype", c_int),
    ]


class ContrastiveLoss(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("loss", "gradient", "maps", "index", "labels")],
        *[(name, c_int64) for name in "SBPK"],
        ("temperature", c_float),
    ]


class AttentionTap(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("maps", "grad", "slope", "q", "k", "columns")],
        *[(name, c_int64) for name in ("rows", "queries", "keys", "heads", "D", "C")],
        *[("q_strides", c_int64 * 2), ("k_strides", c_int64 * 2)],
        *[("scale", c_float), ("dtype", c_int)],
    ]


class Decide(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("early", "weights", "deep", "reading")],
        *[("shares", c_void_p), ("places", c_void_p)],
        *[(name, c_int64) for name in ("B", "J", "F", "batch")],
        *[("threshold", c_double), ("latch", c_bool), ("nan_early", c_bool)],
    ]


class RadialAmplitude(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("mean", "profile", "latents")],
        *[(name, c_int64) for name in "BCHW"],
        *[(name, c_int64) for name in ("b_stride", "c_stride", "h_stride", "first_bin")],
        *[("log", c_bool), ("dtype", c_int)],
    ]


def guarded(tensor):
    """A copy of equal strides whose memory ends lie in NaN, on 16 bytes where ``tensor`` does."""
    if not tensor.numel():
        return tensor.clone()
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    fill = float("nan") if tensor.is_floating_point() else -(2**30)
    memory = torch.full((span + 2 * MARGIN,), fill, dtype=tensor.dtype)
    start = MARGIN + tensor.data_ptr() % 16 // tensor.element_size()
    copy = memory.as_strided(tensor.shape, tensor.stride(), start)
    return copy.copy_(tensor) if 0 not in tensor.stride() else _fill_expanded(copy, tensor)


def _fill_expanded(copy, tensor):
    first = tuple(slice(0, 1) if s == 0 else slice(None) for s in tensor.stride())
    copy[first].copy_(tensor[first])
    return copy


class HostCuda:
    """``ops.reference`` by the CUDA kernels."""

    def __init__(self, library):
        self._library = library
        self._library.radial_scratch.restype = c_int64
        self._library.radial_scratch.argtypes = [c_int64, c_int64]
        self.device()

    def device(self, processors=132, shared_bytes=227 << 10, reversed_order=False):
        """The GPU to be, and whether a block's last thread runs first."""
        self._library.host_device(processors, shared_bytes, int(reversed_order))

    def _run(self, name, *arguments):
        call = getattr(self._library, name)
        call.restype = ctypes.c_char_p
        message = call(*arguments)
        if message:
            raise RuntimeError(message.decode())

    def lora_delta_(self, y, x, a, b, *tables):
        x, a, b = guarded(x), guarded(a), guarded(b)
        table, kept = _row_table(a, *tables)
        op = LoraDelta(
            y.data_ptr(), x.data_ptr(), _matrix(a), _matrix(b), table, *x.shape[1:], y.shape[2],
            *y.stride()[:2], *x.stride()[:2], DTYPES[y.dtype],
        )  # fmt: skip
        self._run("lora_delta", ctypes.byref(op))
        del kept

    def lora_fold(self, w, a, b, *tables):
        w, a, b = guarded(w), guarded(a), guarded(b)
        table, kept = _row_table(a, *tables)
        out = guarded(torch.zeros(table.rows, *w.shape, dtype=w.dtype))
        op = LoraFold(
            out.data_ptr(), w.data_ptr(), _matrix(a), _matrix(b), table, w.shape[1], w.shape[0],
            w.stride(0), DTYPES[w.dtype],
        )  # fmt: skip
        self._run("lora_fold", ctypes.byref(op))
        del kept
        return out

    def cache_refresh_(self, cache, fresh, rows):
        fresh, rows = guarded(fresh), guarded(rows)
        op = CacheRefresh(
            cache.data_ptr(), fresh.data_ptr(), rows.data_ptr(), cache.shape[0], *fresh.shape,
            (c_int64 * 3)(*cache.stride()[:3]), (c_int64 * 3)(*fresh.stride()[:3]),
            cache.element_size(),
        )  # fmt: skip
        self._run("cache_refresh", ctypes.byref(op))

    def combine_(self, out, noise, weights, guidance_scale=None):
        noise, weights = guarded(noise), guarded(weights)
        guided = guidance_scale is not None
        strides = (0, *out.stride()[:3]) if guided else out.stride()[:4]
        op = Combine(
            out.data_ptr(), noise.data_ptr(), weights.data_ptr(), *noise.shape,
            (c_int64 * 4)(*strides), (c_int64 * 5)(*noise.stride()[:5]), weights.dim() == 4,
            guided, guidance_scale or 0.0, DTYPES[out.dtype],
        )  # fmt: skip
        self._run("combine", ctypes.byref(op))

    def contrastive_loss(self, maps, index, labels, temperature=0.5):
        maps, index, labels = guarded(maps), guarded(index), guarded(labels)
        S, B = maps.shape[:2]
        loss, gradient = guarded(torch.zeros(B)), guarded(torch.zeros(maps.shape))
        op = ContrastiveLoss(
            loss.data_ptr(), gradient.data_ptr(), maps.data_ptr(), index.data_ptr(),
            labels.data_ptr(), S, B, maps[0, 0].numel(), len(index), temperature,
        )  # fmt: skip
        self._run("contrastive_loss", ctypes.byref(op))
        return loss, gradient

    def attention_tap(self, q, k, columns, heads, scale, grad=None):
        """The maps, or with ``grad`` their gradient in q."""
        q, k, columns = guarded(q), guarded(k), guarded(columns)
        grad = None if grad is None else guarded(grad)
        shape = q.shape if grad is not None else (*q.shape[:2], len(columns))
        out = guarded(torch.zeros(shape, dtype=torch.float32 if grad is None else q.dtype))
        op = AttentionTap(
            *([out.data_ptr(), None, None] if grad is None
              else [None, grad.data_ptr(), out.data_ptr()]),
            q.data_ptr(), k.data_ptr(), columns.data_ptr(), *q.shape[:2], k.shape[1], heads,
            q.shape[2] // heads, len(columns), (c_int64 * 2)(*q.stride()[:2]),
            (c_int64 * 2)(*k.stride()[:2]), scale, DTYPES[q.dtype],
        )  # fmt: skip
        self._run("attention_tap" if grad is None else "attention_tap_backward", ctypes.byref(op))
        return out

    def decide_(self, early, weights, deep, reading, shares, places, *rules):
        read = None if reading is None else guarded(reading)
        shares, places = guarded(shares), guarded(places)
        op = Decide(
            early.data_ptr(), weights.data_ptr(), deep.data_ptr(),
            None if read is None else read.data_ptr(), shares.data_ptr(), places.data_ptr(),
            len(early), len(weights), places.shape[1], weights.shape[1], *rules,
        )  # fmt: skip
        self._run("decide", ctypes.byref(op))

    def radial_amplitude(self, latents, cutoff=0.2, log=False):
        latents, (B, C, H, W) = guarded(latents), latents.shape
        mean = guarded(torch.zeros(B))
        profile = guarded(torch.zeros(B, reference.radial_bins(H, W)))
        scratch = torch.empty(B * self._library.radial_scratch(H, W))
        op = RadialAmplitude(
            mean.data_ptr(), profile.data_ptr(), latents.data_ptr(), B, C, H, W,
            *latents.stride()[:3], reference.first_bin(H, W, cutoff), log, DTYPES[latents.dtype],
        )  # fmt: skip
        self._run("radial_amplitude", ctypes.byref(op), c_void_p(scratch.data_ptr()))
        return mean, profile


def _matrix(tensor):
    return Matrix(tensor.data_ptr(), *tensor.stride())


def _row_table(a, slots, row_ptr, row_slot, row_scale):
    kept = [guarded(table) for table in (slots, row_ptr, row_slot, row_scale)]
    counts = slots.numel() - 1, row_ptr.numel() - 1, row_slot.numel(), a.shape[0]
    return RowTable(*(table.data_ptr() for table in kept), *counts), kept
