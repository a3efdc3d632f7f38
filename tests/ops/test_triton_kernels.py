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
from cmlora_fast.triton_kernels.rank_lanes import block_of_ranks, most_lanes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (DEVICE == "cuda")

# More ranks on a row than one pass takes (128, expanded 64 at a time).
MANY_RANKS = RowTable([100, 60, 7], [[(0, 0.5), (1, -1.0), (2, 1.0)], [(1, 2.0)], []])
# More than are looked up together, on ranks that begin anywhere.
MANY_ADAPTERS = RowTable([3] * 70, [[(slot, 0.1) for slot in range(70)], [(69, 1.0)]])
OCTETS = RowTable([8, 32, 16, 0, 40], [[(4, 1.0), (1, -0.5)], [(2, 0.3)], [(0, 1.0)] * 17])

LORA_CASES = {
    **{f"{name}, odd sizes": (mix, (13, 37, 41)) for name, mix in MIXES.items()},
    "several blocks": (MIXES["plain"], (70, 130, 80)),  # of tokens, K and N
    "its own in four blocks": (MIXES["each its own"], (130, 64, 200)),
    "passes in four blocks": (MANY_RANKS, (40, 64, 200)),
    "more ranks than a pass": (MANY_RANKS, (13, 37, 70)),
    "many adapters": (MANY_ADAPTERS, (5, 16, 24)),
    "octets of ranks": (OCTETS, (20, 48, 64)),
    "K in uneven parts": (MIXES["base row"], (20, 1100, 48)),
    "less K than parts": (MIXES["plain"], (5, 16, 24)),
    "smallest": (MIXES["one"], (1, 1, 1)),
}


@pytest.fixture(autouse=True)
def triton():
    with ops.force(backend="triton"):
        yield


def move(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def check_delta(y, x, *rest):
    exact, twin = y.double(), y.clone()
    reference.lora_delta_(exact, x.double(), *(t.double() for t in rest[:2]), *rest[2:])
    terms = y.double().abs()
    positive = (t.double().abs() for t in (x, *rest[:2]))
    reference.lora_delta_(terms, *positive, *rest[2:5], rest[5].abs())
    reference.lora_delta_(twin, x, *rest)
    ops.lora_delta_(y, x, *rest)
    assert_as_good(y, twin, exact, terms)


def lora_inputs(mix, shape, dtype):
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    y, x = torch.randn(rows, tokens, N), torch.randn(rows, tokens, K)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(N, total)
    return move(*(tensor.to(dtype) for tensor in (y, x, a, b)), *mix.tensors())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix, shape", LORA_CASES.values(), ids=LORA_CASES.keys())
def test_lora_delta(mix, shape, dtype):
    y, *rest = lora_inputs(mix, shape, dtype)
    before = y.clone()
    check_delta(y, *rest)
    for row, entries in enumerate(mix.rows):
        assert entries or torch.equal(y[row], before[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lora_delta_keeps_to_its_rows_and_columns(dtype):
    _, x, a, b, *tables = lora_inputs(MIXES["base row"], (19, 24, 40), dtype)
    (wide,) = move(torch.randn(3, 25, 64).to(dtype))
    before, y = wide.clone(), wide[:, 3:22, 8:48]
    y[0, 0, 0] = float("nan")  # of the base row
    check_delta(y, x[:1].expand(3, -1, -1), a.T.contiguous().T, b.T.contiguous().T, *tables)
    assert torch.equal(y[0, 1:], before[0, 4:22, 8:48])
    y.copy_(before[:, 3:22, 8:48])
    assert torch.equal(wide, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_rank_0_keep_every_bit(dtype):
    y, *rest = lora_inputs(RowTable([0, 8], [[(0, 1.0)], []]), (5, 16, 8), dtype)
    y[:, 0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
    before = y.clone().view(torch.uint8)
    ops.lora_delta_(y, *rest)
    assert torch.equal(y.view(torch.uint8), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [1e4, 1e-6, 0.0])
def test_extreme_values(value, dtype):
    y, x, a, b, *tables = lora_inputs(MIXES["plain"], (13, 40, 48), dtype)
    if dtype == torch.float16 and value > 1:
        a *= 8  # sums of the ranks pass 65504, y does not
        b /= 4000
    check_delta(y, (x * value).to(dtype), a, b, *tables)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinity_and_nan_stay_what_and_where_they_are(dtype):
    mix = RowTable([1], [[(0, 1.0)]])  # with more ranks infinities of both signs meet
    y, x, a, b, *tables = lora_inputs(mix, (5, 16, 8), dtype)
    x[0, 1, 3], x[0, 3, 0] = float("inf"), float("nan")
    twin = y.clone()
    reference.lora_delta_(twin, x, a, b, *tables)
    ops.lora_delta_(y, x, a, b, *tables)
    assert torch.equal(y.isnan(), twin.isnan()) and torch.equal(y[0, 1], twin[0, 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_k_and_blocks_change_nothing_but_rounding(dtype):
    y, *rest = lora_inputs(MIXES["plain"], (20, 200, 40), dtype)
    launch = {"num_warps": 4, "num_stages": 3}
    with tuning.trial("lora_shrink") as set_config:
        for parts in (1, 2, 4):
            set_config({"BLOCK_M": 16, "BLOCK_K": 32, "SPLIT_K": parts, **launch})
            check_delta(y.clone(), *rest)


def test_other_rows_and_tokens_change_nothing():
    y, x, a, b, slots, row_ptr, *entries = lora_inputs(MIXES["plain"], (40, 40, 136), torch.float32)
    part = y[1:, 3:30].clone()
    ops.lora_delta_(y, x, a, b, slots, row_ptr, *entries)
    ops.lora_delta_(part, x[1:, 3:30], a, b, slots, row_ptr[1:].clone(), *entries)
    torch.testing.assert_close(part, y[1:, 3:30], rtol=1e-5, atol=1e-5)


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


def test_lanes_hold_a_usual_row():
    a = torch.zeros(160, 8)
    slots, row_ptr, row_slot, _ = RowTable([32] * 5, [[(j, 1.0)] for j in range(5)]).tensors()
    assert block_of_ranks(a, slots, row_ptr, row_slot) == 32  # Composite
    slots, row_ptr, row_slot, _ = RowTable([32] * 5, [[(j, 1.0) for j in range(5)]] * 2).tensors()
    assert block_of_ranks(a, slots, row_ptr, row_slot) == 128  # all on every row, in passes
    slots, row_ptr, row_slot, _ = RowTable([4], []).tensors()
    assert block_of_ranks(a[:4], slots, row_ptr, row_slot) == 16
    assert most_lanes(6, 2) >= 24  # ranks 7 to 9, then 15 to 17: each in two octets


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
        (lambda rows: rows[0].update(op="lora"), r"row 0: expected op of lora_shrink, lora_expand"),
        (lambda rows: rows[1].update(dtypes=["int8"]), r"row 1: expected dtypes of float32"),
        (lambda rows: rows[0].update(max_token=1), r"row 0: unknown keys max_token"),
        (lambda rows: rows[0].update(max_rank=0), r"row 0: expected limits that are whole"),
        (lambda rows: rows[0]["config"].update(BLOCK_M=48), r"row 0: expected blocks that are pow"),
        (lambda rows: rows[0]["config"].pop("num_warps"), r"row 0: expected config of BLOCK_K"),
        (lambda rows: rows[-1].update(max_rank=8), r"expected a last row of lora_expand"),
    ],
)
def test_a_broken_table_is_named(tmp_path, change, message):
    table = copy.deepcopy(tuning.load_table(tuning.TABLES / "default.json"))
    change(table["rows"])
    path = tmp_path / "sm90.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=rf"sm90\.json: {message}"):
        tuning.load_table(path)
