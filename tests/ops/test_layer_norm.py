"""``layer_norm``, ``add_layer_norm`` and ``add_shift``: what a block does between its products."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good

SHAPES = [  # tokens, C
    (5, 320),  # two octets a lane
    (3, 640),
    (2, 1280),  # five
    (2, 2048),  # read anew for every sum
    (3, 37),  # nothing divides a vector
    (1, 1),
    (0, 8),
    (4, 0),
]
OPS = ["layer_norm", "add_layer_norm", "add_shift"]


def arguments(op, tokens, C, dtype=torch.float32, affine=None, mean=0.0):
    x, y = ((torch.randn(2, tokens, C) + mean).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(C).to(affine or dtype) for _ in range(2))
    return {
        "layer_norm": (x, weight, bias),
        "add_layer_norm": (x, y, weight, bias),
        "add_shift": (x, y, bias),
    }[op]


def results(function, *given, **options):
    made = function(*given, **options)
    return made if isinstance(made, tuple) else (made,)


def check(call, op, given, **options):
    wide = [None if t is None else t.double() for t in given]
    if op == "add_layer_norm":  # the total is rounded before it is normed
        total = (wide[0] + wide[1]).to(given[0].dtype).double()
        exact = total, reference.layer_norm(total, *wide[2:])
    else:
        exact = results(getattr(reference, op), *wide)
    C = given[0].shape[-1]
    ours = results(getattr(call, op), *given, **options)
    twins = results(getattr(reference, op), *given)
    for got, twin, want in zip(ours, twins, exact, strict=True):
        assert_as_good(got[..., :C], twin, want, want.abs())


@pytest.mark.parametrize("affine", [None, torch.float32], ids=["own", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_kernels_match_the_twin(op, shape, affine, dtype, cuda):
    given = arguments(op, *shape, dtype, affine)
    if not given[0].numel():
        assert getattr(ops, op)(*given) is not None
        return
    check(cuda, op, given)


@pytest.mark.parametrize("op", OPS)
def test_twins_run_elsewhere(op, dtype):
    check(ops, op, arguments(op, 5, 37, dtype))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("C", [64, 37])
def test_room_is_left(op, C, dtype, cuda):
    given = arguments(op, 3, C, dtype)
    check(cuda, op, given, room=8)
    *_, wide = results(getattr(cuda, op), *given, room=8)
    assert wide.shape == (2, 3, C + 8) and wide.is_contiguous()


def test_means_far_from_zero(dtype, cuda):
    check(cuda, "layer_norm", arguments("layer_norm", 7, 320, dtype, mean=-300.0))


@pytest.mark.parametrize("C", [320, 2048])
def test_without_weight_or_bias(C, cuda):
    x = torch.randn(2, 3, C)
    check(cuda, "layer_norm", (x, None, None))
    check(cuda, "layer_norm", (x, None, torch.randn(C)))


def test_extreme_values(cuda):
    x = torch.zeros(1, 2, 64)
    x[0, 0, 3] = float("nan")
    out = cuda.layer_norm(x, torch.ones(64), torch.full((64,), 2.0))
    assert out[0, 0].isnan().all() and (out[0, 1] == 2).all()


def test_a_token_does_not_depend_on_others(dtype, cuda):
    x, y, weight, bias = arguments("add_layer_norm", 9, 320, dtype)
    total, out = cuda.add_layer_norm(x, y, weight, bias)
    one = cuda.add_layer_norm(x[1:, 4:5].contiguous(), y[1:, 4:5].contiguous(), weight, bias)
    assert torch.equal(one[0][0, 0], total[1, 4]) and torch.equal(one[1][0, 0], out[1, 4])


@pytest.mark.parametrize("op", OPS)
def test_registration(op):
    opcheck(getattr(ops, op).op, arguments(op, 3, 16))


@pytest.mark.parametrize("op", OPS)
def test_wrong_arguments_are_named(op):
    x, *rest = arguments(op, 3, 16)
    vector = rest[-1]
    wrong = [
        ((x.transpose(0, 1), *rest), ValueError, "contiguous"),
        ((x.double(), *rest), TypeError, "float32"),
        ((x, *rest[:-1], vector[:4]), ValueError, r"\[C\]"),
        ((x, *rest[:-1], vector.half()), TypeError, r"\[C\]"),
        ((x.clone().requires_grad_(), *rest), RuntimeError, "records no gradient"),
    ]
    for given, error, message in wrong:
        with pytest.raises(error, match=f"^{op}: .*{message}"):
            getattr(ops, op)(*given)
    with pytest.raises(ValueError, match=f"{op}: expected room"):
        getattr(ops, op)(x, *rest, room=-1)
