"""The Triton kernels on a GPU, else in Triton's interpreter, which knows no bfloat16."""

import copy
import json

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference

from ..support.op_checks import MIXES, RowTable, assert_as_good, row_weights

pytest.importorskip("triton")
from cmlora_fast.triton_kernels import tuning
from cmlora_fast.triton_kernels.rank_lanes import block_of_ranks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")

# More ranks on a row than one pass holds (64), and a slab wide enough to show it.
MANY_RANKS = RowTable([100, 60, 7], [[(0, 0.5), (1, -1.0), (2, 1.0)], [(1, 2.0)], []])

LORA_CASES = {
    **{f"{name}, odd sizes": (mix, (13, 37, 41)) for name, mix in MIXES.items()},
    "several blocks": (MIXES["plain"], (70, 130, 80)),  # two of tokens, three of K, two of N
    "more ranks than a pass": (MANY_RANKS, (13, 37, 70)),
}


@pytest.fixture(autouse=True)
def triton():
    with ops.force(backend="triton"):
        yield


def move(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix, shape", LORA_CASES.values(), ids=LORA_CASES.keys())
def test_lora_delta(mix, shape, dtype):
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    buffer, x = torch.randn(rows, tokens, N + 3), torch.randn(rows, tokens, K)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(total, N).T  # b is strided
    buffer, x, a, b = (tensor.to(dtype) for tensor in (buffer, x, a, b))
    buffer, x, a, b, *tables = move(buffer, x, a, b, *mix.tensors())
    y = buffer[..., 1:-2]
    exact, twin, before = y.double(), y.clone(), buffer.clone()
    reference.lora_delta_(exact, x.double(), a.double(), b.double(), *tables)
    reference.lora_delta_(twin, x, a, b, *tables)
    ops.lora_delta_(y, x, a, b, *tables)
    assert_as_good(y, twin, exact)
    assert torch.equal(buffer[..., 0], before[..., 0])
    assert torch.equal(buffer[..., -2:], before[..., -2:])
    for row, entries in enumerate(mix.rows):
        assert entries or torch.equal(y[row], before[row, :, 1:-2])


def test_unused_adapters_are_not_read():
    mix = RowTable([4, 8, 4], [[(0, 1.0)], [(2, 0.5)]])
    x, a, b = torch.randn(2, 5, 16), torch.randn(16, 16), torch.randn(8, 16)
    a[4:12] = b[:, 4:12] = float("nan")
    x, a, b, *tables = move(x, a, b, *mix.tensors())
    assert ops.lora_delta(x, a, b, *tables).isfinite().all()


def test_gradient_in_x():
    mix = MIXES["plain"]
    x, a, b = torch.randn(2, 5, 16), torch.randn(mix.total_rank, 16), torch.randn(8, mix.total_rank)
    x, a, b, *tables = move(x, a, b, *mix.tensors())
    x.requires_grad_()
    (ours,) = torch.autograd.grad(ops.lora_delta(x, a, b, *tables).square().sum(), x)
    (twin,) = torch.autograd.grad(reference.lora_delta(x, a, b, *tables).square().sum(), x)
    torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cache_refresh(dtype):
    buffer, fresh = move(torch.randn(4, 9, 5, 8).to(dtype), torch.randn(2, 4, 5, 8).to(dtype))
    before = buffer.clone()
    (rows,) = move(torch.tensor([3, 1], dtype=torch.int32))
    ops.cache_refresh_(buffer[:, 2:6], fresh, rows)
    before[[3, 1], 2:6] = fresh
    assert torch.equal(buffer, before)


@pytest.mark.parametrize("scale", [None, 7.5])
@pytest.mark.parametrize("per_pixel", [False, True], ids=["per image", "per pixel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_combine(dtype, per_pixel, scale):
    size = 2, 3, 2, 4, 9, 7
    noise, weights = move(torch.randn(size).to(dtype), row_weights(size, per_pixel))
    noise = noise.transpose(3, 4).contiguous().transpose(3, 4)
    out = torch.zeros(noise.shape[2:] if scale else (2, *noise.shape[2:]), device=DEVICE)
    out, exact = out.to(dtype), out.double()
    twin = out.clone()
    reference.combine_(exact, noise.double(), weights, scale)
    reference.combine_(twin, noise, weights, scale)
    ops.combine_(out, noise, weights, scale)
    assert_as_good(out, twin, exact)


LINEAR_CASES = {name: LORA_CASES[name] for name in (
    "plain, odd sizes", "base row, odd sizes", "no entries, odd sizes", "several blocks",
    "more ranks than a pass",
)}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix, shape", LINEAR_CASES.values(), ids=LINEAR_CASES.keys())
def test_lora_linear(mix, shape, dtype):
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    x, w, bias = torch.randn(rows, tokens, K + 2)[..., 1:-1], torch.randn(N, K), torch.randn(N)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(N, total)
    x, w, bias, a, b = (tensor.to(dtype) for tensor in (x, w, bias, a, b))
    x, w, bias, a, b, *tables = move(x, w, bias, a, b, *mix.tensors())
    for offset in (bias, None):
        wide = [None if t is None else t.double() for t in (x, w, offset, a, b)]
        exact = reference.lora_linear(*wide, *tables)
        twin = reference.lora_linear(x, w, offset, a, b, *tables)
        assert_as_good(ops.lora_linear(x, w, offset, a, b, *tables), twin, exact)


def test_lanes_hold_a_usual_row():
    a = torch.zeros(160, 8)
    slots, row_ptr, row_slot, _ = RowTable([32] * 5, [[(j, 1.0)] for j in range(5)]).tensors()
    assert block_of_ranks(a, slots, row_ptr, row_slot) == 32  # Composite
    slots, row_ptr, row_slot, _ = RowTable([32] * 5, [[(j, 1.0) for j in range(5)]] * 2).tensors()
    assert block_of_ranks(a, slots, row_ptr, row_slot) == 64  # all on every row, in passes
    slots, row_ptr, row_slot, _ = RowTable([4], []).tensors()
    assert block_of_ranks(a[:4], slots, row_ptr, row_slot) == 16


@pytest.mark.parametrize("path", sorted(tuning.TABLES.glob("*.json")), ids=lambda p: p.name)
def test_tables_are_valid_and_fit_every_call(path):
    tuning.load_table(path)
    for op in tuning.BLOCKS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for tokens, features, rank in ((1, 1, 16), (77, 768, 32), (16384, 10240, 64)):
                config = tuning._find(path.stem, op, dtype, tokens, features, rank)["config"]
                assert set(config) == {*tuning.BLOCKS[op], *tuning.LAUNCH}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[0].update(op="lora"), r"row 0: expected op of lora_delta_, lora_linear"),
        (lambda rows: rows[1].update(dtypes=["int8"]), r"row 1: expected dtypes of float32"),
        (lambda rows: rows[0].update(max_token=1), r"row 0: unknown keys max_token"),
        (lambda rows: rows[0].update(max_rank=0), r"row 0: expected limits that are whole"),
        (lambda rows: rows[0]["config"].update(BLOCK_M=48), r"row 0: expected blocks that are pow"),
        (lambda rows: rows[0]["config"].pop("num_warps"), r"row 0: expected config of BLOCK_K"),
        (lambda rows: rows[-1].update(max_rank=8), r"expected a last row of lora_linear"),
    ],
)
def test_a_broken_table_is_named(tmp_path, change, message):
    table = copy.deepcopy(tuning.load_table(tuning.TABLES / "default.json"))
    change(table["rows"])
    path = tmp_path / "sm90.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"sm90\.json: {message}"):
        tuning.load_table(path)
