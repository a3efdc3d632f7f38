import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good, with_serial_pool


def check(x):
    value = x.double().chunk(2, -1)[0]
    assert_as_good(ops.geglu(x), reference.geglu(x), reference.geglu(x.double()), value.abs())


@pytest.mark.parametrize("shape", [(2, 7, 64), (3, 66), (1, 2), (5, 0), (0, 8), (4, 514)], ids=str)
def test_matches_reference(shape, dtype, isa):
    check((3 * torch.randn(shape)).to(dtype))


def test_gelu_over_the_line(isa):
    """Relative to the result also in the left tail, which cancellation would lose."""
    gate = torch.linspace(-5, 12, 4096)
    ours = ops.geglu(torch.cat([torch.ones_like(gate), gate])).double()
    exact = gate.double() * torch.special.ndtr(gate.double())
    assert ((ours - exact).abs() <= 4e-6 * exact.abs() + 1e-30).all()


def test_extreme_gates(isa):
    gate = torch.tensor([-float("inf"), -1e30, -40.0, 0.0, 1e30, float("inf"), float("nan")])
    ours = ops.geglu(torch.cat([torch.ones_like(gate), gate]))
    assert ours[1:4].abs().max() < 1e-6 and ours[4] == gate[4] and ours[6].isnan()
    assert ours[5] == gate[5] or ours[5].isnan()


@pytest.mark.parametrize("shape", [(2, 7, 64), (3, 66), (1, 2), (5, 0), (0, 8), (4, 514)], ids=str)
def test_gradient(shape, dtype, isa):
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    out = ops.geglu(x)
    grad = torch.randn_like(out)
    twin = torch.autograd.grad(reference.geglu(x), x, grad)[0]
    wide = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(reference.geglu(wide), wide, grad.double())[0]
    assert_as_good(torch.autograd.grad(out, x, grad)[0], twin, exact, exact.abs() + 1)


def test_slope_over_the_line(isa):
    gate = torch.linspace(-8, 8, 4096)
    x = torch.cat([torch.ones_like(gate), gate]).requires_grad_()
    slope = torch.autograd.grad(ops.geglu(x).sum(), x)[0][4096:].double()
    g = gate.double()
    exact = torch.special.ndtr(g) + g * torch.exp(-g * g / 2) / (2 * torch.pi) ** 0.5
    assert (slope - exact).abs().max() <= 4e-7


def test_slope_at_the_ends(isa):
    gate = torch.tensor([-1e30, -40.0, 0.0, 40.0, 1e30, float("nan")])
    x = torch.cat([torch.ones_like(gate), gate]).requires_grad_()
    slope = torch.autograd.grad(ops.geglu(x).sum(), x)[0][6:]
    torch.testing.assert_close(slope[:5], torch.tensor([0, 0, 0.5, 1, 1]), atol=1e-6, rtol=0)
    assert slope[5].isnan()


def test_no_second_gradient():
    x = torch.randn(2, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(ops.geglu(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_repeatable_and_independent_of_neighbours(dtype, isa):
    x = torch.randn(300, 2 * 37).to(dtype)
    out = ops.geglu(x)
    assert torch.equal(with_serial_pool(lambda: ops.geglu(x)), out)
    assert torch.equal(ops.geglu(x[5:6]), out[5:6])


def test_registration():
    opcheck(ops.geglu.op, (torch.randn(3, 8),))


def test_wrong_arguments_are_named():
    x = torch.randn(3, 8)
    wrong = [
        (x[:, :7].contiguous(), ValueError, "2N"),
        (x.T, ValueError, "contiguous"),
        (x.double(), TypeError, "float32"),
    ]
    for argument, error, message in wrong:
        with pytest.raises(error, match="geglu: .*" + message):
            ops.geglu(argument)


@pytest.mark.parametrize("shape", [(2, 7, 64), (3, 66), (1, 2), (4, 514)], ids=str)
@pytest.mark.parametrize("room", [0, 8])
def test_cuda_matches_reference(shape, room, dtype, cuda):
    x = (3 * torch.randn(shape)).to(dtype)
    value, exact = x.double().chunk(2, -1)[0], reference.geglu(x.double())
    out = cuda.geglu(x, room)
    assert out.shape == (*shape[:-1], shape[-1] // 2 + room)
    assert_as_good(out[..., : shape[-1] // 2], reference.geglu(x), exact, value.abs())


def test_cuda_leaves_gradients_to_the_twin(cuda):
    x = torch.randn(3, 16, requires_grad=True)
    twin = torch.autograd.grad(reference.geglu(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(ops.geglu(x).sum(), x)[0], twin)
