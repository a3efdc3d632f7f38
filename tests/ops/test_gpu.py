"""The kernels on a GPU: against their twins in float64, on other streams, inside graphs."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import backends, reference

from ..support.op_checks import MIXES, RowTable, assert_as_good, row_weights

pytestmark = pytest.mark.gpu

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


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    try:
        with ops.force(backend=request.param):
            yield request.param
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda_kernels():
    entry = backends.backends()["cuda"]
    if not entry["available"]:
        pytest.skip(entry["reason"])


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
@pytest.mark.parametrize("shape", [(13, 37, 41), (130, 64, 200)], ids=str)
def test_mixes(mix, shape, dtype, backend):
    check_delta(*lora_inputs(mix, shape, dtype))


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
    if backend == "cuda":  # Triton's lanes follow the size of the table
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


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 64), (15, 25), (256, 256)], ids=str)
def test_radial_amplitude(size, log, dtype, cuda_kernels):
    latents = torch.randn(3, 4, *size).to("cuda", dtype)
    exact_mean, exact = reference.radial_amplitude(latents.double(), log=log)
    twin_mean, twin = reference.radial_amplitude(latents, log=log)
    mean, profile = ops.radial_amplitude(latents, log=log)
    assert_as_good(profile, twin, exact)
    assert_as_good(mean, twin_mean, exact_mean)
    assert torch.equal(ops.radial_amplitude(latents[1:2], log=log)[1], profile[1:2])


def test_radial_amplitude_of_empty_bands_and_nan(cuda_kernels):
    latents = torch.randn(2, 4, 64, 64, device="cuda")
    latents[1, 0, 0, 0] = float("nan")
    mean, _ = ops.radial_amplitude(latents)
    assert mean.isnan().tolist() == [False, True]
    assert ops.radial_amplitude(latents, 80.0)[0].isnan().all()


@pytest.mark.parametrize("size", [(640, 64, 64), (9, 5, 7)], ids=str)
def test_cache_refresh(size, dtype, backend):
    C, H, W = size
    buffer = torch.randn(6, C + 32, H, W, device="cuda").to(dtype)
    fresh = torch.randn(2, C, H, W, device="cuda").to(dtype)
    rows, expected = torch.tensor([5, 1], dtype=torch.int32, device="cuda"), buffer.clone()
    expected[[5, 1], :C] = fresh
    ops.cache_refresh_(buffer[:, :C], fresh, rows)
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("scale", [None, 7.5])
@pytest.mark.parametrize("per_pixel", [False, True], ids=["per image", "per pixel"])
@pytest.mark.parametrize("size", [(2, 5, 1, 4, 64, 64), (2, 3, 2, 4, 9, 7)], ids=str)
def test_combine(size, scale, per_pixel, dtype, backend):
    noise, weights = torch.randn(size).to("cuda", dtype), row_weights(size, per_pixel).cuda()
    out = noise.new_empty(noise.shape[2:] if scale else (2, *noise.shape[2:]))
    exact, twin = out.double(), out.clone()
    reference.combine_(exact, noise.double(), weights, scale)
    reference.combine_(twin, noise, weights, scale)
    ops.combine_(out, noise, weights, scale)
    assert_as_good(out, twin, exact)


def test_contrastive_loss(dtype, cuda_kernels):
    maps = torch.rand(6, 2, 16, 16).to("cuda", dtype)
    tables = [torch.tensor(t, dtype=torch.int32, device="cuda")
              for t in ([3, 0, 1, 2, 4, 5, 0], [2, 0, 0, 1, 1, 2, 1])]  # fmt: skip
    exact = reference.contrastive_loss(maps.double(), *tables)
    twin = reference.contrastive_loss(maps, *tables)
    for got, theirs, want in zip(ops.contrastive_loss(maps, *tables), twin, exact, strict=True):
        assert_as_good(got, theirs, want, want.abs())


@pytest.mark.parametrize("shape", [(6, 256, 77, 8, 160), (2, 70, 33, 3, 7)], ids=str)
def test_attention_tap(shape, dtype, cuda_kernels):
    rows, queries, keys, heads, D = shape
    q, k = (torch.randn(rows, n, heads * D).to("cuda", dtype) for n in (queries, keys))
    columns = torch.tensor([1, 5, keys - 1], dtype=torch.int32, device="cuda")
    grad = torch.randn(rows, queries, 3, device="cuda")

    def run(op, q, k, grad):
        q = q.detach().requires_grad_()
        maps = op(q, k, columns, heads)
        return maps.detach(), *torch.autograd.grad(maps, q, grad)

    exact = run(reference.attention_tap, q.double(), k.double(), grad.double())
    twin = run(reference.attention_tap, q, k, grad)
    for got, theirs, want in zip(run(ops.attention_tap, q, k, grad), twin, exact, strict=True):
        assert_as_good(got, theirs, want)
    alone = ops.attention_tap(q[1:2], k[1:2], columns, heads)
    assert torch.equal(ops.attention_tap(q, k, columns, heads)[1:2], alone)


@pytest.mark.parametrize("latch", [True, False])
def test_decide(latch, cuda_kernels):
    shares, places = torch.rand(2, 5, device="cuda"), torch.tensor([[1], [4]], dtype=torch.int32)
    reading = torch.tensor([0.3, 0.4, 0.5, float("nan")], device="cuda")
    early = torch.tensor([1, 0, 0, 1], dtype=torch.int32, device="cuda")
    deep = torch.zeros(3, 8, dtype=torch.int32, device="cuda")
    made = [early, torch.zeros(5, 8, device="cuda"), deep]
    twin = [t.clone() for t in made]
    given = (reading, shares, places.cuda(), 0.4, latch, True)
    ops.decide_(*made, *given)
    reference.decide_(*twin, *given)
    assert all(map(torch.equal, made, twin))


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


def test_small_ops_in_a_graph(cuda_kernels):
    latents = torch.randn(2, 4, 64, 64, device="cuda")
    noise, weights = torch.randn(2, 5, 2, 4, 64, 64, device="cuda"), torch.rand(5, 2, device="cuda")
    out = torch.empty(2, 4, 64, 64, device="cuda")
    ops.radial_amplitude(latents)
    ops.combine_(out, noise, weights, 7.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, profile = ops.radial_amplitude(latents)
        ops.combine_(out, noise, weights, 7.5)
    latents.normal_()
    noise.normal_()
    graph.replay()
    expected = torch.empty_like(out)
    ops.combine_(expected, noise, weights, 7.5)
    assert torch.equal(profile, ops.radial_amplitude(latents)[1]) and torch.equal(out, expected)


def test_nothing_waits_for_the_device(cuda_kernels):
    y, *rest = lora_inputs(MIXED, (64, 320, 320), torch.bfloat16)
    ops.lora_delta_(y, *rest)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.lora_delta_(y, *rest)
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


def test_cuda_kernels_are_the_first_choice(cuda_kernels):
    for kernels in (("cpu", "cuda", "triton"), ("cpu", "cuda")):
        assert backends.pick("op", torch.zeros(1, device="cuda"), kernels) == "cuda"
