"""The kernels on a GPU, but for those of adapters: against their twins in float64."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import backends, reference

from ..support.op_checks import assert_as_good, row_weights

pytestmark = pytest.mark.gpu


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


def test_cuda_kernels_are_the_first_choice(cuda_kernels):
    for kernels in (("cpu", "cuda", "triton"), ("cpu", "cuda")):
        assert backends.pick("op", torch.zeros(1, device="cuda"), kernels) == "cuda"
