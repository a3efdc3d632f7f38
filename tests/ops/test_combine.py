import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import assert_as_good, row_weights, with_serial_pool

SHAPES = [  # G, J, B, C, H, W
    (1, 1, 1, 1, 1, 1),  # the smallest
    (2, 5, 1, 4, 32, 32),  # five adapters, one image
    (2, 3, 4, 4, 5, 7),  # nothing divides a vector
    (3, 2, 2, 1, 3, 33),  # three guidance parts
    (2, 0, 1, 4, 3, 3),  # no rows: zero
    (2, 2, 0, 4, 3, 3),  # no images
]


WEIGHTS = pytest.mark.parametrize("per_pixel", [False, True], ids=["per image", "per pixel"])


def make_inputs(shape, dtype=torch.float32, guided=False, per_pixel=False):
    noise, weights = torch.randn(shape), row_weights(shape, per_pixel)
    out = torch.full(shape[2:] if guided else (shape[0], *shape[2:]), float("nan"))
    return out.to(dtype), noise.to(dtype), weights


def check(out, noise, weights, guidance_scale=None):
    def apply(op, out, noise):
        op(out, noise, weights, guidance_scale)
        return out

    exact = apply(reference.combine_, out.double(), noise.double())
    twin = apply(reference.combine_, out.clone(), noise)
    terms = noise.new_zeros(noise.shape[0], *noise.shape[2:], dtype=torch.double)
    reference.combine_(terms, noise.double().abs(), weights.abs())
    terms *= 1 + 2 * abs(guidance_scale or 0)
    assert_as_good(apply(ops.combine_, out, noise), twin, exact, terms)


@WEIGHTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, per_pixel, dtype, isa):
    check(*make_inputs(shape, dtype, per_pixel=per_pixel))


@WEIGHTS
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, -3.0])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] == 2], ids=str)
def test_guided_matches_reference(shape, scale, per_pixel, dtype, isa):
    check(*make_inputs(shape, dtype, True, per_pixel), scale)


@WEIGHTS
def test_strided_inputs(per_pixel, dtype, isa):
    out, noise, weights = make_inputs((2, 3, 2, 4, 6, 9), dtype, True, per_pixel)
    rows = noise.movedim(0, 1).contiguous().movedim(1, 0)  # rows before guidance parts
    check(out, rows, weights, 7.5)
    wide = torch.zeros(2, 8, 6, 20).to(dtype)
    check(wide[:, 2:6, :, 3:12], noise[..., :9], weights, 2.0)
    third = weights[..., ::2, :].contiguous() if per_pixel else weights
    check(wide[:, 2:6, :3, 3:12], noise[..., ::2, :], third, 2.0)
    check(out, noise[:1].expand(2, -1, -1, -1, -1, -1), weights, 2.0)
    assert not wide[:, :2].any() and not wide[..., 12:].any()


@pytest.mark.parametrize("value", [1e4, 1e-6])
def test_extreme_values(value, dtype, isa):
    out, noise, weights = make_inputs((2, 3, 1, 4, 8, 8), dtype)
    check(out, (noise * value).to(dtype), weights / 10)


@pytest.mark.parametrize("form", [(1, 2), (1, 2, 5, 7)], ids=str)
def test_one_row_of_weight_one_is_itself(form, dtype, isa):
    out, noise, _ = make_inputs((2, 1, 2, 4, 5, 7), dtype)
    ops.combine_(out, noise, torch.ones(form))
    assert torch.equal(out, noise[:, 0])


@pytest.mark.parametrize("size", [(9, 8), (5, 7)], ids=str)
def test_equal_pixels_are_an_image(size, dtype, isa):
    """The same sums, whichever way the weights come; by pixel a CPU has the twin alone."""
    out, noise, weights = make_inputs((2, 3, 2, 4, *size), dtype, guided=True)
    rows = noise[..., : size[1]].movedim(-2, -3).contiguous().movedim(-3, -2)  # runs of a line
    ops.combine_(out, rows, weights, 7.5)
    pixels, per_pixel = torch.empty_like(out), weights[..., None, None].expand(-1, -1, *size)
    ops.combine_(pixels, rows, per_pixel.contiguous(), 7.5)
    torch.testing.assert_close(pixels, out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.7, 3e-5, 1e4])
def test_every_half_precision_value_rounds_as_in_torch(weight, dtype, isa):
    """Subnormals, ties, overflow: all 65536 bit patterns, in whole vectors and one by one."""
    values = torch.arange(2**16).to(torch.uint16).view(dtype)
    for noise in (values.view(1, 1, 1, 1, 256, 256), values.view(1, 1, 1, 2**13, 8, 1)):
        out = torch.empty_like(noise[:, 0])
        ops.combine_(out, noise, torch.full((1, 1), weight))
        expected = (noise[:, 0].float() * weight).to(dtype)
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.nan_to_num(0, 1, -1), expected.nan_to_num(0, 1, -1))


def test_repeatable_and_independent_of_neighbours(dtype, isa):
    out, noise, weights = make_inputs((2, 4, 6, 4, 32, 32), dtype, guided=True)
    ops.combine_(out, noise, weights, 7.5)
    again = torch.empty_like(out)
    with_serial_pool(lambda: ops.combine_(again, noise, weights, 7.5))
    assert torch.equal(again, out)
    one = torch.empty_like(out[2:3])
    ops.combine_(one, noise[:, :, 2:3], weights[:, 2:3].contiguous(), 7.5)
    assert torch.equal(one, out[2:3])


def test_registration():
    opcheck(ops.combine_.op, make_inputs((2, 3, 1, 4, 2, 2)))
    opcheck(ops.combine_.op, (*make_inputs((2, 3, 1, 4, 2, 2), guided=True), 7.5))
    opcheck(ops.combine_.op, make_inputs((2, 3, 1, 4, 5, 7), per_pixel=True))


@WEIGHTS
def test_compiles_without_graph_break(per_pixel):
    out, noise, weights = make_inputs((2, 3, 1, 4, 2, 2), torch.float32, True, per_pixel)
    expected = out.clone()
    ops.combine_(expected, noise, weights, 7.5)
    compiled = torch.compile(ops.combine_, fullgraph=True, backend="aot_eager")
    compiled(out, noise, weights, 7.5)
    assert torch.equal(out, expected)


def test_wrong_arguments_are_named():
    out, noise, weights = make_inputs((2, 3, 1, 4, 2, 2))
    wrong = [
        ((out, noise[0], weights), ValueError, r"noise \[G, J, B, C, H, W\]"),
        ((out, noise, weights[1:]), ValueError, r"weights \[J, B\]"),
        ((out, noise, torch.ones(3, 1, 2)), ValueError, r"weights \[J, B\] or \[J, B, H, W\]"),
        ((out, noise, torch.ones(2, 1, 2, 2)), ValueError, r"or \[J, B, H, W\]"),
        ((out, noise, torch.ones(3, 1, 2, 3)), ValueError, r"or \[J, B, H, W\]"),
        ((out, noise, torch.ones(3, 1, 2, 2).mT), ValueError, "contiguous"),
        ((out, noise, weights.double()), TypeError, r"weights \[J, B\] as float32 tensor"),
        ((out, noise, torch.ones(3, 2)[:, :1]), ValueError, "contiguous"),
        ((out, noise.half(), weights), TypeError, "out, noise of one dtype"),
        ((out[0], noise, weights), ValueError, r"out \[G, B, C, H, W\]"),
        ((out, noise, weights, 2.0), ValueError, r"out \[B, C, H, W\]"),
        ((out[0], noise[:1], weights, 2.0), ValueError, "two guidance parts"),
        ((out[0], noise, weights, "2"), TypeError, "guidance_scale as a finite number.*'2'"),
        ((out[0], noise, weights, float("nan")), TypeError, "guidance_scale"),
        ((out[:1].expand(2, -1, -1, -1, -1), noise, weights), ValueError, "without overlap"),
        ((out, noise.clone().requires_grad_(), weights), RuntimeError, "records no gradient"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match="combine_: .*" + message):
            ops.combine_(*arguments)
    assert out.isnan().all()
