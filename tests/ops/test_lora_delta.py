from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cmlora_fast import _C, ops
from cmlora_fast.ops import reference
from cmlora_fast.ops.lora_delta import add_products
from torch.library import opcheck

from ..support.op_checks import MIXES, RowTable, assert_as_good, lora_inputs, with_serial_pool

SHAPES = [  # tokens, K, N
    (1, 1, 1),  # the smallest
    (77, 48, 64),  # text tokens
    (13, 37, 41),  # nothing divides a tile
    (50, 320, 96),  # width of SD 1.5
    (29, 2100, 70),  # more than one pass of the ranks that run along K
    (5, 1100, 33),  # more than two passes over K
]


def exact_result(y, x, a, b, *tables):
    y, x, a, b = (tensor.to(torch.float64, copy=True) for tensor in (y, x, a, b))
    reference.lora_delta_(y, x, a, b, *tables)
    return y


def check(y, x, *rest):
    exact = exact_result(y, x, *rest)
    terms = exact_result(*(t.abs() for t in (y, x, *rest)))
    twin, ours = y.clone(), y  # ours keeps the strides it was given
    reference.lora_delta_(twin, x, *rest)
    ops.lora_delta_(ours, x, *rest)
    assert_as_good(ours, twin, exact, terms)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, isa):
    check(*lora_inputs(MIXES["plain"], shape, dtype))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_mixes_match_reference(mix, dtype, isa):
    check(*lora_inputs(mix, (13, 37, 41), dtype))


def test_functional_form(dtype, isa):
    _, *inputs = lora_inputs(MIXES["plain"], (13, 37, 41), dtype)
    exact = reference.lora_delta(*(t.double() if t.is_floating_point() else t for t in inputs))
    assert_as_good(ops.lora_delta(*inputs), reference.lora_delta(*inputs), exact)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_products_of_all_ranks(mix, dtype):
    y, x, a, b, *tables = lora_inputs(mix, (13, 37, 41), dtype)
    unused = torch.ones(mix.total_rank + 3, dtype=torch.bool)  # three ranks of no adapter
    for slot, _ in (entry for row in mix.rows for entry in row):
        unused[tables[0][slot] : tables[0][slot + 1]] = False
    a, b = (torch.nn.functional.pad(t, pad) for t, pad in ((a, (0, 0, 0, 3)), (b, (0, 3))))
    a[unused], b[:, unused] = float("nan"), float("nan")
    tables[2:] = (torch.nn.functional.pad(t, (0, 2)) for t in tables[2:])  # entries of no row
    exact, twin, before = exact_result(y, x, a, b, *tables), y.clone(), y.clone()
    reference.lora_delta_(twin, x, a, b, *tables)
    add_products(y, x, a, b, *tables)
    assert_as_good(y, twin, exact, exact_result(*(t.abs() for t in (before, x, a, b, *tables))))
    for row, entries in enumerate(mix.rows):
        assert entries or torch.equal(y[row], before[row])


def test_strided_inputs(dtype, isa):
    y, x, a, b, *tables = lora_inputs(MIXES["plain"], (13, 37, 41), dtype)
    wide_y = torch.zeros(3, 20, 64).to(dtype)  # rows, tokens and features of a larger buffer
    view = wide_y[:2, 3:16, 5:46]
    view.copy_(y)
    before = wide_y.clone()
    shared_x = x[:1].expand(2, -1, -1)  # one sample for all rows
    check(view, shared_x, a, b, *tables)
    view.copy_(before[:2, 3:16, 5:46])
    assert torch.equal(wide_y, before)  # nothing outside the view was written
    check(y.clone(), x, a.T.contiguous().T, b.T.contiguous().T, *tables)  # a and b turned


@pytest.mark.parametrize("value", [1e4, 1e-6, 0.0])
def test_extreme_values(value, dtype, isa):
    y, x, a, b, *tables = lora_inputs(MIXES["plain"], (13, 37, 41), dtype)
    if dtype == torch.float16 and value > 1:
        b /= 100  # stays below 65504
    check(y, (x * value).to(dtype), a, b, *tables)


def test_overflow_and_nan_stay_in_their_row(isa):
    y, x, a, b, *tables = lora_inputs(MIXES["each its own"], (5, 16, 8), torch.float16)
    before = y.clone()
    ops.lora_delta_(y, x, a, b, *tables)
    spoiled = x.clone()
    spoiled[2] = float("nan")
    ops.lora_delta_(before, spoiled, a, b, *tables)
    assert before[2].isnan().all()
    assert torch.equal(before[[0, 1, 3]], y[[0, 1, 3]])


def test_unused_adapters_are_not_read(isa):
    mix = RowTable([4, 8, 4], [[(0, 1.0)], [(2, 0.5)]])
    y, x, a, b, *tables = lora_inputs(mix, (5, 16, 8))
    a[4:12] = b[:, 4:12] = float("nan")
    check(y, x, a, b, *tables)
    assert y.isfinite().all()


def test_base_row_keeps_every_bit(dtype, isa):
    y, *rest = lora_inputs(MIXES["base row"], (13, 37, 41), dtype)
    y[0, 0, :3] = torch.tensor([-0.0, float("nan"), float("inf")])
    before = y[0].clone().view(torch.uint8)
    ops.lora_delta_(y, *rest)
    assert torch.equal(y[0].view(torch.uint8), before)


@pytest.mark.parametrize("mix", ["plain", "each its own"])
def test_repeatable_and_independent_of_neighbours(mix, dtype, isa):
    y, x, a, b, slots, row_ptr, *entries = lora_inputs(MIXES[mix], (300, 64, 96), dtype)

    def run(first, last):
        part = y[first:last].clone()
        table = (slots, row_ptr[first : last + 1].clone(), *entries)
        ops.lora_delta_(part, x[first:last], a, b, *table)
        return part

    whole = run(0, len(y))
    assert torch.equal(run(0, len(y)), whole)
    assert torch.equal(with_serial_pool(lambda: run(0, len(y))), whole)
    assert torch.equal(run(1, 2), whole[1:2])
    tokens = y[:, 7:30].clone()  # other tiles, other neighbours
    ops.lora_delta_(tokens, x[:, 7:30], a, b, slots, row_ptr, *entries)
    assert torch.equal(tokens, whole[:, 7:30])


RANKS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 25, 32, 36, 48, 49, 63, 100, 128, 200, 256]


def test_ranks_one_by_one_and_mixed(isa):
    shape = (29, 130, 70)
    for rank in RANKS:
        check(*lora_inputs(RowTable([rank], [[(0, 0.7)]]), shape))
    each = [(slot, 0.1 * slot) for slot in range(len(RANKS))]
    check(*lora_inputs(RowTable(RANKS, [each, each[::-2], []]), shape))


@pytest.mark.parametrize("mix, tokens", [("plain", 400), ("each its own", 120)])
def test_threads_without_torch_agree(mix, tokens, isa):
    y, *rest = lora_inputs(MIXES[mix], (tokens, 96, 96))
    ours, threaded = y.clone(), y.clone()
    ops.lora_delta_(ours, *rest)
    pool = _C.current_pool()
    _C.set_fallback_threads(3)
    _C.use_pool(_C.Pool.threads)
    try:
        ops.lora_delta_(threaded, *rest)
    finally:
        _C.use_pool(pool)
        _C.set_fallback_threads(torch.get_num_threads())
    assert torch.equal(threaded, ours)


def test_calls_from_several_threads_agree():
    inputs = [lora_inputs(MIXES["plain"], (50 + 10 * i, 96, 96)) for i in range(8)]
    expected = [y.clone() for y, *_ in inputs]
    for y, (_, *rest) in zip(expected, inputs, strict=True):
        ops.lora_delta_(y, *rest)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda arguments: ops.lora_delta_(*arguments), inputs))
    for y, (ours, *_) in zip(expected, inputs, strict=True):
        assert torch.equal(ours, y)


@torch.inference_mode()
def test_inference_mode():
    check(*lora_inputs(MIXES["plain"], (13, 37, 41)))


def test_gradient_in_x(dtype):
    _, x, a, b, *tables = lora_inputs(MIXES["plain"], (7, 24, 20), dtype)
    grad = torch.randn(len(x), 7, 20).to(dtype)
    x.requires_grad_()
    ops.lora_delta(x, a, b, *tables).backward(grad)
    exact = reference.lora_delta(grad.double(), b.T.double(), a.T.double(), *tables)
    assert_as_good(x.grad, reference.lora_delta(grad, b.T, a.T, *tables), exact)


def test_gradient_of_an_expanded_sum():
    _, x, a, b, *tables = lora_inputs(MIXES["base row"], (7, 24, 20))
    x.requires_grad_()
    (ours,) = torch.autograd.grad(ops.lora_delta(x, a, b, *tables).sum(), x)
    (twin,) = torch.autograd.grad(reference.lora_delta(x, a, b, *tables).sum(), x)
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)


def test_registration():
    y, x, a, b, *tables = lora_inputs(MIXES["plain"], (4, 6, 8))
    opcheck(ops.lora_delta_.op, (y, x, a, b, *tables))
    opcheck(ops.lora_delta.op, (x.requires_grad_(), a, b, *tables))
    schema = str(torch.ops.cmlora_fast.lora_delta_.default._schema)
    assert schema.startswith("cmlora_fast::lora_delta_(Tensor(a0!) y, Tensor x, ")


def test_compiles_without_graph_break():
    y, x, a, b, *tables = lora_inputs(MIXES["plain"], (4, 6, 8))

    def layer(y, x):
        ops.lora_delta_(y, x, a, b, *tables)
        return y + ops.lora_delta(x, a, b, *tables)

    expected = layer(y.clone(), x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, x), expected)


def test_write_is_seen_by_autograd():
    y, x, a, b, *tables = lora_inputs(MIXES["one"], (4, 6, 8))
    factor = torch.ones(1, requires_grad=True)
    loss = (factor * y).sum()  # saves y
    ops.lora_delta_(y, x, a, b, *tables)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def replaced(position, change):
    def apply(inputs):
        inputs[position] = change(inputs[position])

    return apply


WRONG = {  # what is wrong, the error, the start of its message
    "x of two dimensions": (replaced(1, lambda x: x[0]), ValueError, r"expected x \[rows, tok"),
    "K of x and a": (replaced(2, lambda a: a[:, 1:]), ValueError, r"expected x \[rows, tokens, K"),
    "N of y": (replaced(0, lambda y: y[..., 1:]), ValueError, r"expected y \[rows, tokens, N\]"),
    "dtypes": (replaced(1, lambda x: x.half()), TypeError, "expected y, x, a, b of one dtype"),
    "float64": (replaced(1, lambda x: x.double()), TypeError, "expected y, x, a, b of one dtype"),
    "no tensor": (replaced(1, lambda x: x.numpy()), TypeError, "expected tensors y, x, a, b"),
    "no y": (replaced(0, lambda y: None), TypeError, "expected tensors y, x, a, b; got NoneType"),
    "strided last dimension": (
        replaced(0, lambda y: y.mT.contiguous().mT),
        ValueError,
        r"contiguous last .* strides",
    ),
    "y on itself": (replaced(0, lambda y: y[:1].expand(2, -1, -1)), ValueError, "y without over"),
    "int64 table": (replaced(4, lambda t: t.long()), TypeError, r"expected slots \[S \+ 1\] as in"),
    "missing row": (replaced(5, lambda t: t[:-1]), ValueError, r"row_ptr \[3\]"),
    "slots past the ranks": (replaced(4, lambda t: t + 50), ValueError, r"slots\[1\] between 50 "),
    "falling row_ptr": (replaced(5, lambda t: -t), ValueError, r"row_ptr\[1\] between 0 "),
    "row_ptr past the entries": (replaced(5, lambda t: t * 2), ValueError, r"row_ptr\[2\] between"),
    "unknown slot": (replaced(6, lambda t: t + 2), ValueError, r"row_slot\[1\] in 0 \.\. 2; got 3"),
    "scales": (replaced(7, lambda t: t[1:]), ValueError, "row_slot and row_scale of one length"),
    "meta device": (replaced(1, lambda x: x.to("meta")), ValueError, "on one device"),
    "x is y": (lambda inputs: inputs.__setitem__(1, inputs[0]), ValueError, "y without overlap"),
    "gradient": (replaced(1, lambda x: x.requires_grad_()), RuntimeError, "records no gradient"),
}


@pytest.mark.parametrize("change, error, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named(change, error, message):
    inputs = list(lora_inputs(MIXES["plain"], (4, 8, 8)))
    before = inputs[0].clone()
    y = inputs[0]
    change(inputs)
    with pytest.raises(error, match="lora_delta_: .*" + message):
        ops.lora_delta_(*inputs)
    assert torch.equal(y, before)


def test_gradient_in_adapters_is_refused():
    _, x, a, b, *tables = lora_inputs(MIXES["one"], (4, 6, 8))
    with pytest.raises(RuntimeError, match="lora_delta: the gradient is in x alone"):
        ops.lora_delta(x, a.requires_grad_(), b, *tables)
