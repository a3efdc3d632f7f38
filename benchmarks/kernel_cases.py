"""Inputs of every op that is measured: an op's cases give a name and a function that makes them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from cmlora_fast.ops import reference
from torch import Tensor

from .workloads import ADAPTERS, LAYERS, QUICK_RANKS, RANKS, row_table

Cases = Iterator[tuple[str, Callable[[], tuple]]]


def lora_delta_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for name, shape in LAYERS.items():
        for rank in QUICK_RANKS if quick else RANKS:
            yield f"{name}, rank {rank}", partial(lora_inputs, [[0]], *shape, [rank], dtype)
    for count in ADAPTERS:
        ranks, own = [16] * count, [[slot] for slot in range(count)]
        on_all = [list(range(count))]
        for name, tokens, K, N in (
            ("32x32", 1024, 640, 640),
            ("text keys", 77, 768, 320),
        ):
            each = partial(lora_inputs, own, tokens, K, N, ranks, dtype)
            yield f"{name}, {count} rows with their own of rank 16", each
        every = partial(lora_inputs, on_all, 2048, 640, 640, ranks, dtype)
        yield f"32x32, {count} of rank 16 on every row", every


def lora_inputs(rows, tokens, K, N, ranks, dtype) -> tuple[Tensor, ...]:
    """y, x, a, b and the table."""
    y, x = torch.randn(len(rows), tokens, N), torch.randn(len(rows), tokens, K)
    a, b = torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
    return *(tensor.to(dtype) for tensor in (y, x, a, b)), *row_table(ranks, rows)


def lora_fold_cases(dtype: torch.dtype, quick: bool) -> Cases:
    widths = ((320, 320), (1280, 1280)) if quick else ((320, 320), (640, 640), (1280, 1280))
    for K, N in (*widths, (1280, 10240)):
        for ranks, rows in (
            ([16], [[0]]),
            ([16] * 5, [[0, 1, 2, 3, 4]]),
            ([64] * 3, [[0], [1], [2]]),
        ):
            name = f"{N}x{K}, {len(rows)} rows of {len(rows[0])} x rank {ranks[0]}"
            yield name, partial(fold_inputs, rows, K, N, ranks, dtype)


def fold_inputs(rows, K, N, ranks, dtype) -> tuple[Tensor, ...]:
    """w, a, b and the table."""
    w, a, b = torch.randn(N, K), torch.randn(sum(ranks), K) / K**0.5, torch.randn(N, sum(ranks))
    return *(tensor.to(dtype) for tensor in (w, a, b)), *row_table(ranks, rows)


def radial_amplitude_cases(dtype: torch.dtype, quick: bool) -> Cases:
    squares = ((1, 64, 64), (1, 128, 128))
    others = ((1, 32, 32), (4, 96, 64), (1, 104, 88), (1, 127, 113))
    for batch, height, width in squares if quick else (*squares, *others):
        shape = (batch, 4, height, width)
        yield " x ".join(map(str, shape)), lambda shape=shape: (torch.randn(shape).to(dtype),)


def cache_refresh_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for channels, width, size in ((640, 960, 64), (640, 960, 32)):
        name = f"2 rows of {channels} x {size} x {size}"
        yield name, partial(refresh_inputs, channels, width, size, dtype)


def refresh_inputs(channels, width, size, dtype) -> tuple[Tensor, ...]:
    """A slice of the concat buffer, two fresh rows and where they belong."""
    buffer = torch.zeros(10, width, size, size, dtype=dtype)
    fresh = torch.randn(2, channels, size, size).to(dtype)
    return buffer[:, :channels], fresh, torch.tensor([1, 4], dtype=torch.int32)


def combine_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for rows, images, size in ((5, 1, 64), (5, 4, 64), (3, 1, 128)):
        name = f"{rows} rows, {images} x 4 x {size} x {size}"
        yield name, partial(combine_inputs, rows, images, size, dtype)


def combine_inputs(rows, images, size, dtype) -> tuple:
    """out, noise, weights and a guidance scale."""
    noise = torch.randn(2, rows, images, 4, size, size).to(dtype)
    return torch.empty_like(noise[0, 0]), noise, torch.rand(rows, images), 7.5


def attention_cases(dtype: torch.dtype, quick: bool) -> Cases:
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


def geglu_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for tokens, N in ((2048, 640), (10240, 640), (8192, 1280), (2048, 2560), (512, 5120)):
        yield f"{tokens} x {N}", lambda t=tokens, n=N: (torch.randn(t, 2 * n).to(dtype),)


def group_norm_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for rows, side, C in ((10, 32, 160), (2, 32, 480), (10, 8, 640), (2, 64, 320), (2, 64, 960)):
        name = f"{rows} x {C} x {side} x {side}, with shift and SiLU"
        yield name, partial(norm_inputs, rows, side, C, dtype)


def norm_inputs(rows, side, C, dtype) -> tuple:
    """Images, groups, weight, bias, shift, epsilon and that a SiLU follows."""
    x = torch.randn(rows, side * side, C).to(dtype)
    return x, 32, torch.randn(C), torch.randn(C), torch.randn(rows, C), 1e-5, True


def im2col_cases(dtype: torch.dtype, quick: bool) -> Cases:
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


def col2im_cases(dtype: torch.dtype, quick: bool) -> Cases:
    for name, make in im2col_cases(dtype, quick):
        yield name, partial(columns_inputs, make)


def columns_inputs(make: Callable[[], tuple]) -> tuple:
    """The columns of images, their size and the kernel."""
    x, *form = make()
    return torch.randn(reference.im2col(x, *form).shape), list(x.shape[1:3]), *form


CASES = {
    "attention": attention_cases,
    "geglu": geglu_cases,
    "group_norm": group_norm_cases,
    "im2col": im2col_cases,
    "col2im": col2im_cases,
    "lora_delta_": lora_delta_cases,
    "lora_fold": lora_fold_cases,
    "radial_amplitude": radial_amplitude_cases,
    "cache_refresh_": cache_refresh_cases,
    "combine_": combine_cases,
}
