import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good, with_serial_pool

SHAPES = [  # rows, queries, keys, heads, D
    (1, 1, 1, 1, 1),  # the smallest
    (2, 64, 64, 8, 40),  # SD 1.5's heads, whole blocks
    (2, 70, 77, 5, 20),  # a prompt's keys; nothing divides a block
    (1, 33, 200, 3, 7),  # several blocks of keys; nothing divides a vector
    (1, 5, 97, 1, 160),  # one key past a block, the widest heads
    (0, 4, 4, 2, 8),  # no rows
    (2, 0, 4, 2, 8),  # no queries
]


def make_inputs(shape, dtype=torch.float32, size=1.0):
    rows, queries, keys, heads, D = shape
    tokens = [size * torch.randn(rows, n, heads * D) for n in (queries, keys, keys)]
    return *(t.to(dtype) for t in tokens), heads


def check(q, k, v, heads, scale=None):
    exact = reference.attention(q.double(), k.double(), v.double(), heads, scale)
    twin = reference.attention(q, k, v, heads, scale)
    assert_as_good(ops.attention(q, k, v, heads, scale), twin, exact, v.abs().sum(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, isa):
    check(*make_inputs(shape, dtype))


@pytest.mark.parametrize("scale", [0.0, 0.3, -1.0])
def test_scale(scale, dtype, isa):
    check(*make_inputs((2, 20, 30, 2, 16), dtype), scale)


def gradients(function, q, k, v, heads, grad, scale=None):
    leaves = [tokens.detach().requires_grad_() for tokens in (q, k, v)]
    return torch.autograd.grad(function(*leaves, heads, scale), leaves, grad)


def exponentials_rounding(q, k, heads, scale=None):
    """Relative error of the softmax: the absolute one of scores that are rounded twice."""
    sizes = [t.double().abs().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k)]
    factor = sizes[0].shape[-1] ** -0.5 if scale is None else abs(scale)
    terms = factor * (sizes[0] @ sizes[1].mT).max().item() if q.numel() else 0.0
    return (8 + 2 * terms) * torch.finfo(torch.float32).eps


def check_gradients(q, k, v, heads, scale=None):
    """Scores are rounded twice, by forward and backward; exponentials make that relative."""
    grad = torch.randn_like(q)
    ours = gradients(ops.attention, q, k, v, heads, grad, scale)
    wide = [tokens.double() for tokens in (q, k, v)]
    exacts = gradients(reference.attention, *wide, heads, grad.double(), scale)
    rounding = exponentials_rounding(q, k, heads, scale)
    for slope, exact in zip(ours, exacts, strict=True):
        limit = rounding * (exact.abs().max() if exact.numel() else exact.new_zeros(()))
        assert slope.shape == exact.shape and ((slope - exact).abs() <= limit).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape, isa):
    check_gradients(*make_inputs(shape))


def test_gradients_of_strided_inputs(isa):
    q, k, v, heads = make_inputs((2, 20, 30, 3, 8))
    both = torch.cat([k, v], dim=2)
    check_gradients(q.transpose(0, 1).contiguous().transpose(0, 1), both[..., :24], v, heads, 0.3)
    check_gradients(q[:1].expand(2, -1, -1), k[:, ::2], v[:, ::2], heads)


def test_gradients_of_a_sharp_softmax(isa):
    check_gradients(*make_inputs((1, 40, 300, 2, 32), size=3.0))


def test_gradient_of_the_queries_alone(isa):
    q, k, v, heads = make_inputs((2, 20, 30, 3, 8))
    grad = torch.randn_like(q)
    every = gradients(ops.attention, q, k, v, heads, grad)
    q.requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.attention(q, k, v, heads), q, grad)[0], every[0])


def test_gradients_of_every_dtype(dtype, isa):
    q, k, v, heads = make_inputs((2, 70, 77, 3, 20), dtype)
    grad = torch.randn_like(q)
    twins = gradients(reference.attention, q, k, v, heads, grad)
    wide = [tokens.double() for tokens in (q, k, v)]
    exacts = gradients(reference.attention, *wide, heads, grad.double())
    ours = gradients(ops.attention, q, k, v, heads, grad)
    for slope, twin, exact in zip(ours, twins, exacts, strict=True):
        assert_as_good(slope, twin, exact)


def test_gradients_repeat_and_are_independent_of_neighbours(isa):
    q, k, v, heads = make_inputs((4, 100, 120, 4, 20))
    grad = torch.randn_like(q)
    every = gradients(ops.attention, q, k, v, heads, grad)
    serial = with_serial_pool(lambda: gradients(ops.attention, q, k, v, heads, grad))
    one = gradients(ops.attention, q[1:2], k[1:2], v[1:2], heads, grad[1:2])
    for slope, again, row in zip(every, serial, one, strict=True):
        assert torch.equal(again, slope) and torch.equal(row, slope[1:2])


def test_long_sums_lose_no_more_than_torch(isa):
    check(*make_inputs((1, 16, 4096, 1, 40)))


def test_sharp_softmax(dtype, isa):
    """Scores of hundreds: one key takes all, in whichever block it stands.

    Errors stand at the few ties, too few to compare with the twin's.
    """
    q, k, v, heads = make_inputs((1, 40, 300, 2, 32), dtype, size=6.0)
    exact = reference.attention(q.double(), k.double(), v.double(), heads)
    rounding = exponentials_rounding(q, k, heads) + torch.finfo(dtype).eps
    error = (ops.attention(q, k, v, heads) - exact).abs().max()
    assert error <= rounding * v.abs().max()


def test_strided_inputs(dtype, isa):
    q, k, v, heads = make_inputs((2, 20, 30, 3, 8), dtype)
    both = torch.cat([k, v], dim=2)  # keys and values of one projection
    check(q.transpose(0, 1).contiguous().transpose(0, 1), both[..., :24], both[..., 24:], heads)
    check(q[:1].expand(2, -1, -1), k[:, ::2], v[:, ::2], heads)


def test_equal_scores_are_the_mean(isa):
    q, k, v, heads = make_inputs((1, 3, 128, 2, 4))
    out = ops.attention(torch.zeros_like(q), k, v, heads)
    torch.testing.assert_close(out, v.mean(1, keepdim=True).expand_as(out))


def test_nan_stays_in_its_query(isa):
    q, k, v, heads = make_inputs((1, 40, 50, 2, 8))
    clean = ops.attention(q, k, v, heads)
    q[0, 7, :8] = float("nan")  # of the first head
    out = ops.attention(q, k, v, heads)
    assert out[0, 7, :8].isnan().all()
    out[0, 7, :8] = clean[0, 7, :8]
    assert torch.equal(out, clean)


def test_repeatable_and_independent_of_neighbours(dtype, isa):
    q, k, v, heads = make_inputs((4, 100, 120, 4, 20), dtype)
    out = ops.attention(q, k, v, heads)
    assert torch.equal(with_serial_pool(lambda: ops.attention(q, k, v, heads)), out)
    assert torch.equal(ops.attention(q[1:2], k[1:2], v[1:2], heads), out[1:2])
    assert torch.equal(ops.attention(q[:, 13:50], k, v, heads), out[:, 13:50])


def test_registration():
    opcheck(ops.attention.op, make_inputs((2, 3, 4, 2, 8)))


def test_wrong_arguments_are_named():
    q, k, v, heads = make_inputs((2, 3, 4, 2, 8))
    wrong = [
        ((q[0], k, v, heads), ValueError, "q .rows, queries, 2 . D."),
        ((q, k, v[:, :3], heads), ValueError, "k and v"),
        ((q[:1], k, v, heads), ValueError, "rows"),
        ((q, k[:, :0], v[:, :0], heads), ValueError, "keys > 0"),
        ((q, k, v, 3), ValueError, "3 . D"),
        ((q, k.half(), v, heads), TypeError, "one dtype"),
        ((q.double(), k.double(), v.double(), heads), TypeError, "float32"),
        ((q.mT.contiguous().mT, k, v, heads), ValueError, "contiguous in their last"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match="attention: .*" + message):
            ops.attention(*arguments)
