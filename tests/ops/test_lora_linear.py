import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import MIXES, assert_as_good


def make_inputs(mix, dtype=torch.float32):
    x, w, bias = torch.randn(len(mix.rows), 13, 37), torch.randn(41, 37) / 6, torch.randn(41)
    a, b = torch.randn(mix.total_rank, 37) / 6, torch.randn(41, mix.total_rank)
    return *(tensor.to(dtype) for tensor in (x, w, bias, a, b)), *mix.tensors()


@pytest.mark.parametrize("mix", ["plain", "base row", "no entries"])
def test_matches_a_layer_and_its_update(mix, dtype):
    x, w, bias, *adapters = make_inputs(MIXES[mix], dtype)
    exact = reference.lora_linear(
        *(t.double() if t.is_floating_point() else t for t in (x, w, bias, *adapters[:2])),
        *adapters[2:],
    )
    apart = torch.nn.functional.linear(x, w, bias)
    reference.lora_delta_(apart, x, *adapters)
    assert_as_good(ops.lora_linear(x, w, bias, *adapters), apart, exact)
    without = ops.lora_linear(x, w, None, *adapters)
    torch.testing.assert_close(without + bias, apart, rtol=2e-2, atol=6e-2)


def test_registration():
    opcheck(ops.lora_linear.op, make_inputs(MIXES["plain"]))


def test_wrong_arguments_are_named():
    x, w, bias, a, b, *tables = make_inputs(MIXES["plain"])
    with pytest.raises(
        ValueError, match=r"lora_linear: expected x \[rows, tokens, K\], w \[N, K\]"
    ):
        ops.lora_linear(x[..., 1:], w, bias, a, b, *tables)
    with pytest.raises(
        ValueError, match=r"lora_linear: expected a \[ΣR, K\], b \[N, ΣR\] and a bias"
    ):
        ops.lora_linear(x, w, bias[1:], a, b, *tables)
    with pytest.raises(ValueError, match=r"lora_linear: .*row_ptr \[3\]"):
        ops.lora_linear(x, w, bias, a, b, tables[0], tables[1][:-1], *tables[2:])
    with pytest.raises(RuntimeError, match=r"lora_linear: .* records no gradient"):
        ops.lora_linear(x, w, bias.requires_grad_(), a, b, *tables)
