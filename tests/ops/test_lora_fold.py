import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.ops import reference
from torch.library import opcheck

from ..support.op_checks import MIXES, RowTable, assert_as_good, with_serial_pool

SHAPES = [  # N, K
    (1, 1),  # the smallest
    (64, 96),  # whole tiles
    (41, 37),  # nothing divides a tile
    (320, 768),  # text keys of SD 1.5
]


def make_inputs(mix, shape, dtype=torch.float32):
    (N, K), total = shape, mix.total_rank
    w, a, b = torch.randn(N, K), torch.randn(total, K), torch.randn(N, total)
    return *(tensor.to(dtype) for tensor in (w, a, b)), *mix.tensors()


def check(w, a, b, *tables):
    exact = reference.lora_fold(w.double(), a.double(), b.double(), *tables)
    sizes = (t.double().abs() if t.is_floating_point() else t for t in (w, a, b, *tables))
    terms = reference.lora_fold(*sizes)
    ours, twin = ops.lora_fold(w, a, b, *tables), reference.lora_fold(w, a, b, *tables)
    assert_as_good(ours, twin, exact, terms)
    return ours


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, isa):
    check(*make_inputs(MIXES["plain"], shape, dtype))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_mixes_match_reference(mix, dtype, isa):
    check(*make_inputs(mix, (41, 37), dtype))


def test_row_without_adapters_is_the_weight_itself(dtype, isa):
    w, *rest = make_inputs(MIXES["base row"], (41, 37), dtype)
    assert torch.equal(ops.lora_fold(w, *rest)[0], w)


def test_unused_adapters_are_not_read(isa):
    w, a, b, *tables = make_inputs(RowTable([4, 8, 4], [[(0, 1.0)], [(2, 0.5)]]), (41, 37))
    a[4:12] = b[:, 4:12] = float("nan")
    assert check(w, a, b, *tables).isfinite().all()


def test_strided_inputs(dtype, isa):
    w, a, b, *tables = make_inputs(MIXES["plain"], (41, 37), dtype)
    wide = torch.zeros(41, 64).to(dtype)
    wide[:, :37] = w
    check(wide[:, :37], a.T.contiguous().T, b.T.contiguous().T, *tables)


def test_repeatable_and_independent_of_threads(dtype, isa):
    inputs = make_inputs(MIXES["each its own"], (320, 128), dtype)
    whole = ops.lora_fold(*inputs)
    assert torch.equal(ops.lora_fold(*inputs), whole)
    assert torch.equal(with_serial_pool(lambda: ops.lora_fold(*inputs)), whole)
    w, a, b, slots, row_ptr, *entries = inputs
    one = ops.lora_fold(w[50:60], a, b[50:60], slots, row_ptr[1:3].clone(), *entries)
    assert torch.equal(one[0], whole[1, 50:60])


def test_registration():
    opcheck(ops.lora_fold.op, make_inputs(MIXES["plain"], (6, 8)))


def test_compiles_without_graph_break():
    inputs = make_inputs(MIXES["plain"], (6, 8))
    compiled = torch.compile(ops.lora_fold, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), ops.lora_fold(*inputs))


def test_wrong_arguments_are_named():
    w, a, b, *tables = make_inputs(MIXES["plain"], (6, 8))
    with pytest.raises(ValueError, match=r"lora_fold: expected w \[N, K\], a .*float32 \(5, 8\)"):
        ops.lora_fold(w[1:], a, b, *tables)
    with pytest.raises(ValueError, match=r"lora_fold: .*contiguous last dimension of w; got .* st"):
        ops.lora_fold(w.T.contiguous().T, a, b, *tables)
    with pytest.raises(TypeError, match=r"lora_fold: expected w, a, b of one dtype"):
        ops.lora_fold(w.half(), a, b, *tables)
    with pytest.raises(ValueError, match=r"lora_fold: expected row_slot\[0\] in 0 \.\. 2; got 9"):
        ops.lora_fold(w, a, b, *tables[:2], tables[2] + 9, tables[3])
