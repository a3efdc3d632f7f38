"""The kernels of adapters on a GPU: against their twins in float64, on other streams, in graphs."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from cmlora_fast.ops.lora_delta import add_products

from ..support.op_checks import MIXES, RowTable, assert_as_good

pytestmark = pytest.mark.gpu

# Under backend "cuda" lora_delta_ is torch's products, as on a GPU without Triton.
RANKS = [4, 8, 16, 33, 128]
MIXED = RowTable(RANKS, [[(0, 1.0), (3, -1.0)], [(4, 0.7)], [], [(j, 0.2) for j in range(5)]])
SHAPES = [  # tokens, K, N
    (1, 320, 320),
    (64, 1280, 1280),
    (77, 768, 320),
    (256, 640, 1280),
    (1000, 2048, 640),
    (77, 329, 331),  # nothing divides a vector
]


def lora_inputs(mix, shape, dtype):
    tokens, K, N = shape
    rows, total = len(mix.rows), mix.total_rank
    y, x = torch.randn(rows, tokens, N), torch.randn(rows, tokens, K)
    a, b = torch.randn(total, K) / K**0.5, torch.randn(N, total)
    inputs = [tensor.to("cuda", dtype) for tensor in (y, x, a, b)]
    return *inputs, *(table.cuda() for table in mix.tensors())


def check_delta(y, x, a, b, *tables):
    exact, twin = y.double(), y.clone()
    reference.lora_delta_(exact, x.double(), a.double(), b.double(), *tables)
    reference.lora_delta_(twin, x, a, b, *tables)
    ops.lora_delta_(y, x, a, b, *tables)
    assert_as_good(y, twin, exact)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lora_delta(shape, dtype, backend):
    check_delta(*lora_inputs(MIXED, shape, dtype))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("shape", [(13, 37, 41), (130, 64, 200), (600, 64, 520)], ids=str)
def test_mixes(mix, shape, dtype, backend):
    check_delta(*lora_inputs(mix, shape, dtype))


@pytest.mark.parametrize("tokens", [64, 3000])  # other blocks, K in other parts
@pytest.mark.parametrize("K", [320, 5120])
@pytest.mark.parametrize("rank", [32, 200])
def test_ranks_and_parts(rank, K, tokens, dtype, backend):
    mix = RowTable([rank] * 3, [[(0, 1.0), (1, 0.5), (2, -1.0)], [(2, 0.3)], []])
    y, *rest = lora_inputs(mix, (tokens, K, 640), dtype)
    again = y.clone()
    check_delta(y, *rest)
    ops.lora_delta_(again, *rest)
    assert torch.equal(again, y)


@pytest.mark.parametrize("value", [1e4, 1e-6])
def test_extreme_values(value, dtype, backend):
    y, x, a, b, *tables = lora_inputs(MIXED, (77, 320, 320), dtype)
    if dtype == torch.float16 and value > 1:
        a *= 8  # sums of the ranks pass 65504, y does not
        b /= 40000
    check_delta(y, (x * value).to(dtype), a, b, *tables)


def test_strides_and_unused_adapters(dtype, backend):
    _, x, a, b, *tables = lora_inputs(
        RowTable([8, 5, 8], [[(0, 1.0)], [(2, 0.5)]]), (40, 64, 72), dtype
    )
    a[8:13] = b[:, 8:13] = float("nan")
    wide = torch.randn(2, 50, 96, device="cuda").to(dtype)
    before = wide.clone()
    check_delta(wide[:, 4:44, 8:80], x[:1].expand(2, -1, -1), a.T.contiguous().T, b, *tables)
    assert wide.isfinite().all()
    wide[:, 4:44, 8:80] = before[:, 4:44, 8:80]
    assert torch.equal(wide, before)


def test_gradient_in_x(dtype, backend):
    _, x, a, b, *tables = lora_inputs(MIXED, (20, 64, 48), dtype)
    grad = torch.randn(len(x), 20, 48, device="cuda").to(dtype)
    x.requires_grad_()
    ops.lora_delta(x, a, b, *tables).backward(grad)
    exact = reference.lora_delta(grad.double(), b.T.double(), a.T.double(), *tables)
    assert_as_good(x.grad, reference.lora_delta(grad, b.T, a.T, *tables), exact)


def test_a_row_is_the_same_alone(dtype, backend):
    y, x, a, b, slots, row_ptr, *entries = lora_inputs(MIXED, (256, 320, 320), dtype)
    alone = y[3:].clone()
    ops.lora_delta_(y, x, a, b, slots, row_ptr, *entries)
    ops.lora_delta_(alone, x[3:], a, b, slots, row_ptr[3:].clone(), *entries)
    if backend == "triton":  # both sizes take blocks of the same size
        assert torch.equal(alone, y[3:])
    assert_as_good(alone, y[3:], y[3:].double())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lora_fold(shape, dtype, cuda_kernels):
    _, K, N = shape
    _, _, a, b, *tables = lora_inputs(MIXED, (1, K, N), dtype)
    w = torch.randn(N, K, device="cuda").to(dtype)
    exact = reference.lora_fold(w.double(), a.double(), b.double(), *tables)
    ours = ops.lora_fold(w, a, b, *tables)
    assert_as_good(ours, reference.lora_fold(w, a, b, *tables), exact)
    assert torch.equal(ours[2], w) and torch.equal(ops.lora_fold(w, a, b, *tables), ours)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lora_linear(shape, dtype, backend):
    _, x, a, b, *tables = lora_inputs(MIXED, shape, dtype)
    w = (torch.randn(shape[2], shape[1]) / shape[1] ** 0.5).to("cuda", dtype)
    bias = torch.randn(shape[2]).to("cuda", dtype)
    exact = reference.lora_linear(*(t.double() for t in (x, w, bias, a, b)), *tables)
    apart = torch.nn.functional.linear(x, w, bias)
    reference.lora_delta_(apart, x, a, b, *tables)
    assert_as_good(ops.lora_linear(x, w, bias, a, b, *tables), apart, exact)


def test_the_current_stream_is_taken(backend):
    y, *rest = lora_inputs(MIXED, (256, 320, 320), torch.bfloat16)
    expected = y.clone()
    ops.lora_delta_(expected, *rest)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel on the default stream would overtake what follows
        late = torch.zeros_like(y)
        late.copy_(y)
        ops.lora_delta_(late, *rest)
    torch.cuda.synchronize()
    assert torch.equal(late, expected)


def test_graphs_replay_bit_for_bit_with_more_rows_than_captured(backend):
    few = RowTable(RANKS, [[(0, 1.0)], [], [], []])
    y, x, a, b, slots, row_ptr, row_slot, row_scale = lora_inputs(
        MIXED, (256, 320, 320), torch.bfloat16
    )
    full = (row_ptr.clone(), row_slot.clone(), row_scale.clone())
    start, out = y.clone(), y.clone()
    tables = (slots, row_ptr, row_slot, row_scale)
    ops.lora_delta_(out, x, a, b, *tables)  # compiled and loaded before the capture
    small = few.tensors()
    row_ptr.copy_(small[1])
    row_slot[:1].copy_(small[2])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(start)
        ops.lora_delta_(out, x, a, b, *tables)
    for table, contents in zip(tables[1:], full, strict=True):
        table.copy_(contents)
    graph.replay()
    eager = start.clone()
    ops.lora_delta_(eager, x, a, b, *tables)
    assert torch.equal(out, eager)


def test_nothing_waits_for_the_device(cuda_kernels):
    y, *rest = lora_inputs(MIXED, (64, 320, 320), torch.bfloat16)
    ops.lora_delta_(y, *rest)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.lora_delta_(y, *rest)
        add_products(y, *rest)
        ops.radial_amplitude(torch.empty(1, 4, 64, 64, device="cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_device_is_taken(cuda_kernels):
    y, *rest = lora_inputs(MIXED, (64, 320, 320), torch.bfloat16)
    other, *theirs = (tensor.to("cuda:1") for tensor in (y, *rest))
    ops.lora_delta_(y, *rest)
    ops.lora_delta_(other, *theirs)
    assert torch.cuda.current_device() == 0 and torch.equal(other.cpu(), y.cpu())
