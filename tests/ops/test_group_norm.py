import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good, with_serial_pool

SHAPES = [  # rows, tokens, C, groups
    (2, 64, 64, 32),  # a small block
    (3, 77, 30, 5),  # nothing divides a vector
    (1, 1, 4, 2),  # one token
    (2, 33, 160, 32),  # one token more than a stretch; groups of five channels
    (0, 8, 8, 2),
    (2, 0, 8, 2),
]


def make_inputs(rows, tokens, C, groups, dtype=torch.float32, mean=0.0):
    x = (torch.randn(rows, tokens, C) + mean).to(dtype)
    return x, groups, torch.randn(C), torch.randn(C), torch.randn(rows, C), 1e-5


def check(x, groups, *rest, call=ops, room=0, **options):
    doubles = [t.double() if torch.is_tensor(t) else t for t in (x, groups, *rest)]
    exact = reference.group_norm(*doubles, **options)
    twin = reference.group_norm(x, groups, *rest, **options)
    ours = call.group_norm(x, groups, *rest, **options, room=room)[..., : x.shape[2]]
    assert_as_good(ours, twin, exact, sizes_of_terms(*doubles))


def sizes_of_terms(x, groups, weight, bias, shift, eps):
    """The sums of absolute values behind each value: a narrow group's are far above its result."""
    z = x if shift is None else x + shift[:, None]
    size = x.abs() if shift is None else x.abs() + shift[:, None].abs()
    grouped = z.unflatten(-1, (groups, -1))
    var, mean = torch.var_mean(grouped, dim=(1, 3), keepdim=True, correction=0)
    inverse = (var + eps).rsqrt()
    return (size + mean.abs().expand_as(grouped).flatten(2)) * (
        inverse.expand_as(grouped).flatten(2) * weight.abs()
    ) + bias.abs()


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, silu, dtype, isa):
    check(*make_inputs(*shape, dtype), silu=silu)


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_means_far_from_zero(mean, isa):
    """Squares are summed of differences to the mean, or nothing would be left of the variance."""
    check(*make_inputs(8, 300, 48, 16, mean=mean), silu=True)


def test_without_shift_and_strided(dtype, isa):
    x, groups, weight, bias, _, eps = make_inputs(2, 40, 96, 4, dtype)
    check(x[:, 3:, :48], groups, weight[:48], bias[:48], None, eps, silu=True)


KERNEL_SHAPES = [  # rows, tokens, C, groups
    (2, 100, 64, 32),  # several chunks of a row
    (1, 17, 320, 32),  # groups of ten channels, two blocks of them
    (3, 9, 640, 32),
    (2, 40, 30, 5),  # nothing divides a vector
    (1, 3, 2560, 32),
    (2, 5, 2304, 1),  # one group, wider than a block has threads
    (1, 1, 4, 2),
]


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_cuda_matches_reference(shape, silu, dtype, cuda):
    check(*make_inputs(*shape, dtype), call=cuda, silu=silu)


@pytest.mark.parametrize("C", [64, 30])
def test_tables_of_any_kind(C, dtype, cuda):
    """Of the images' own dtype, of one row, part of a wider tensor, absent."""
    x, groups, weight, bias, _, eps = make_inputs(3, 33, C, 2, dtype)
    wide = torch.randn(3, 2 * C)
    for shift in (wide[:, C:], wide[:1, C:].to(dtype), wide[:, :C].to(dtype), None):
        check(x, groups, weight.to(dtype), bias.to(dtype), shift, eps, call=cuda)
        check(x, groups, weight.to(dtype), bias.to(dtype), shift, eps)
    check(x, groups, weight, bias, wide[:1, :C], eps, call=cuda, room=8)


@pytest.mark.parametrize("mean", [30.0, -1000.0])
def test_cuda_with_means_far_from_zero(mean, cuda):
    check(*make_inputs(2, 300, 48, 16, mean=mean), call=cuda, silu=True)


def test_cuda_reads_strided_rows_and_none_depends_on_others(dtype, cuda):
    x, groups, weight, bias, shift, eps = make_inputs(3, 50, 96, 4, dtype)
    check(x[:, 3:, :48], groups, weight[:48], bias[:48], None, eps, call=cuda, silu=True)
    out = cuda.group_norm(x, groups, weight, bias, shift, eps)
    assert torch.equal(cuda.group_norm(x[1:2], groups, weight, bias, shift[1:2], eps), out[1:2])


def test_extreme_values(isa):
    x = torch.zeros(1, 8, 8)
    x[0, 0] = 1e4
    check(x, 1, 50 * torch.ones(8), torch.zeros(8), None, 1e-5, silu=True)
    x[0, 1, 2] = float("nan")
    assert ops.group_norm(x, 1, torch.ones(8), torch.zeros(8), silu=True).isnan().all()


def test_repeatable_and_independent_of_neighbours(dtype, isa):
    x, *rest = make_inputs(5, 200, 37, 1, dtype)
    out = ops.group_norm(x, *rest, silu=True)
    assert torch.equal(with_serial_pool(lambda: ops.group_norm(x, *rest, silu=True)), out)
    groups, weight, bias, shift, eps = rest
    one = ops.group_norm(x[3:4], groups, weight, bias, shift[3:4], eps, silu=True)
    assert torch.equal(one, out[3:4])


def test_registration():
    opcheck(ops.group_norm.op, make_inputs(2, 9, 8, 2))


def test_wrong_arguments_are_named():
    x, groups, weight, bias, shift, _ = make_inputs(2, 9, 8, 2)
    wrong = [
        ((x[0], groups, weight, bias), ValueError, "rows, tokens, C"),
        ((x.mT, groups, weight, bias), ValueError, "contiguous"),
        ((x, 3, weight, bias), ValueError, "groups that divide"),
        ((x, groups, weight[:4], bias), ValueError, "weight"),
        ((x, groups, weight, bias.double()), TypeError, "bias"),
        ((x, groups, weight, bias, shift[:, :4]), ValueError, "shift"),
        ((x.clone().requires_grad_(), groups, weight, bias), RuntimeError, "records no gradient"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match="group_norm: .*" + message):
            ops.group_norm(*arguments)
