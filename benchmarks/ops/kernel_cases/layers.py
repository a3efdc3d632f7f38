"""Cases of the ops that a UNet's layers are made of."""

from collections.abc import Callable
from functools import partial

import torch
from cmlora_fast.ops import reference

from ..workloads import Cases, OpCases, both_moved

# Tokens and features of two rows of SD 1.5 and SDXL; tiny: each way through a kernel.
TOKENS = ((8192, 320), (2048, 640), (512, 1280), (8192, 640), (2048, 1280), (20480, 640))
TINY_TOKENS = ((5, 320), (3, 640), (2, 1280), (1, 2048), (3, 37))


def attention_cases(dtype: torch.dtype, size: str) -> Cases:
    for rows, queries, keys, heads, D in (
        (10, 1024, 1024, 8, 20),
        (2, 1024, 1024, 8, 20),
        (10, 1024, 77, 8, 20),
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (10, 64, 64, 8, 80),
        (2, 4096, 4096, 10, 64),
        (2, 4096, 77, 10, 64),
    ):
        name = f"{rows} x {queries} x {keys}, {heads} heads of {D}"
        yield name, partial(attention_inputs, rows, queries, keys, heads, D, dtype)


def attention_inputs(rows, queries, keys, heads, D, dtype) -> tuple:
    """Queries, keys, values and the number of heads."""
    return *(torch.randn(rows, n, heads * D).to(dtype) for n in (queries, keys, keys)), heads


def geglu_cases(dtype: torch.dtype, size: str) -> Cases:
    full = ((2048, 640), (10240, 640), (8192, 1280), (2048, 2560), (512, 5120))
    for tokens, N in ((7, 40), (3, 37)) if size == "tiny" else full:
        yield f"{tokens} x {N}", lambda t=tokens, n=N: (torch.randn(t, 2 * n).to(dtype),)


def group_norm_cases(dtype: torch.dtype, size: str) -> Cases:
    full = ((10, 32, 160), (2, 32, 480), (10, 8, 640), (2, 64, 320), (2, 64, 960))
    for rows, side, C in ((2, 5, 320), (2, 9, 96)) if size == "tiny" else full:
        name = f"{rows} x {C} x {side} x {side}, with shift and SiLU"
        yield name, partial(norm_inputs, rows, side, C, dtype)


def norm_inputs(rows, side, C, dtype) -> tuple:
    """Images, groups, weight, bias, shift, epsilon and that a SiLU follows."""
    x = torch.randn(rows, side * side, C).to(dtype)
    return x, 32, torch.randn(C), torch.randn(C), torch.randn(rows, C), 1e-5, True


def layer_norm_cases(dtype: torch.dtype, size: str) -> Cases:
    for name, make in add_layer_norm_cases(dtype, size):
        yield name, lambda make=make: make()[::2] + make()[3:]


def add_layer_norm_cases(dtype: torch.dtype, size: str) -> Cases:
    for tokens, C in TINY_TOKENS if size == "tiny" else TOKENS:
        name = f"{tokens} x {C}"
        yield name, partial(add_norm_inputs, tokens, C, dtype)


def add_norm_inputs(tokens, C, dtype) -> tuple:
    """Tokens, what is added to them, weight and bias."""
    x, residual = (torch.randn(1, tokens, C).to(dtype) for _ in range(2))
    return x, residual, *(torch.randn(C).to(dtype) for _ in range(2))


def add_shift_cases(dtype: torch.dtype, size: str) -> Cases:
    for tokens, C in TINY_TOKENS if size == "tiny" else TOKENS:
        name = f"{tokens} x {C}"
        yield name, lambda t=tokens, c=C: add_norm_inputs(t, c, dtype)[:3]


def im2col_cases(dtype: torch.dtype, size: str) -> Cases:
    if dtype is not torch.float32:  # what the op takes
        return
    for rows, side, C, stride in (
        (2, 8, 640, 1),
        (10, 8, 640, 1),
        (2, 8, 1280, 1),
        (10, 16, 640, 2),
    ):
        name = f"{rows} x {C} x {side} x {side}, 3 x 3 at stride {stride}"
        form = [3, 3], [stride, stride], [1, 1]
        yield name, lambda shape=(rows, side, side, C), form=form: (torch.randn(shape), *form)


def col2im_cases(dtype: torch.dtype, size: str) -> Cases:
    for name, make in im2col_cases(dtype, size):
        yield name, partial(columns_inputs, make)


def columns_inputs(make: Callable[[], tuple]) -> tuple:
    """The columns of images, their size and the kernel."""
    x, *form = make()
    return torch.randn(reference.im2col(x, *form).shape), list(x.shape[1:3]), *form


CASES = {
    "attention": OpCases(
        attention_cases,
        ("cpu",),
        lambda q, k, v, heads: 2 * q.nbytes + k.nbytes + v.nbytes,
        lambda q, k, v, heads: 4 * q.numel() * k.shape[1],
    ),
    "geglu": OpCases(geglu_cases, ("cpu", "cuda"), lambda x: x.nbytes * 3 // 2),
    "group_norm": OpCases(group_norm_cases, ("cpu", "cuda"), lambda x, *rest: 2 * x.nbytes),
    "layer_norm": OpCases(layer_norm_cases, ("cuda",), lambda x, *rest: 2 * x.nbytes),
    "add_layer_norm": OpCases(add_layer_norm_cases, ("cuda",), lambda x, *rest: 4 * x.nbytes),
    "add_shift": OpCases(add_shift_cases, ("cuda",), lambda x, *rest: 3 * x.nbytes),
    "im2col": OpCases(
        im2col_cases, ("cpu",), lambda x, *form: both_moved(reference.im2col(x, *form), x)
    ),
    "col2im": OpCases(
        col2im_cases, ("cpu",), lambda x, *form: both_moved(reference.col2im(x, *form), x)
    ),
}
