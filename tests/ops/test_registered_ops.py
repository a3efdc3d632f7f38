"""The ops of CLoRA as torch sees them, and what they refuse."""

import pytest
import torch
from cmlora_fast.ops import reference
from cmlora_fast.ops.attention_masks import attention_masks
from cmlora_fast.ops.attention_tap import attention_tap
from cmlora_fast.ops.contrastive_loss import contrastive_loss
from torch.library import opcheck


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def loss_inputs(dtype=torch.float32):
    return torch.rand(4, 2, 5, 7).to(dtype), ints(0, 1, 2, 3, 0), ints(0, 0, 1, 1, 1), 0.5


def mask_inputs(dtype=torch.float32):
    return torch.rand(4, 2, 5, 7).to(dtype), ints(1, 1, -1, 2), 3, (20, 28), 0.6


def tap_inputs(dtype=torch.float32):
    q, k = torch.randn(2, 6, 12).to(dtype), torch.randn(2, 5, 12).to(dtype)
    return q, k, ints(3, 0), 3, 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_reference(dtype):
    given = loss_inputs(dtype)
    for got, want in zip(contrastive_loss(*given), reference.contrastive_loss(*given), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, want)
    q, k, columns, heads, scale = tap_inputs(dtype)
    split = [t.float().unflatten(-1, (3, 4)).transpose(1, 2) for t in (q, k)]
    whole = (scale * split[0] @ split[1].mT).softmax(-1).sum(1)  # what all keys get
    torch.testing.assert_close(attention_tap(q, k, columns, heads, scale), whole[..., [3, 0]])
    given = mask_inputs(dtype)
    got = attention_masks(*given, closing=True)
    assert torch.equal(got, reference.attention_masks(*given, closing=True))


def test_registration():
    opcheck(contrastive_loss.op, loss_inputs())
    opcheck(attention_tap.op, tap_inputs())
    opcheck(attention_masks.op, (*mask_inputs(), True, False, True, True))


@pytest.mark.parametrize(
    "op, inputs",
    [(contrastive_loss, loss_inputs), (attention_masks, mask_inputs), (attention_tap, tap_inputs)],
)
def test_compiles_without_graph_break(op, inputs):
    given = inputs()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")(*given)
    torch.testing.assert_close(compiled, op(*given), rtol=0, atol=0)


def test_records_no_gradient():
    maps, *tables = loss_inputs()
    loss, gradient = contrastive_loss(maps.requires_grad_(), *tables)
    assert not loss.requires_grad and not gradient.requires_grad


def test_wrong_arguments_are_named():
    maps, index, labels, _ = loss_inputs()
    q, k, columns, *_ = tap_inputs()
    wrong = [
        (contrastive_loss, (maps[0], index, labels), ValueError, r"maps \[S, B, r, q\]"),
        (contrastive_loss, (maps.long(), index, labels), TypeError, "one dtype"),
        (contrastive_loss, (maps, index.long(), labels), TypeError, r"index \[K\] as int32"),
        (contrastive_loss, (maps, index, labels[1:]), ValueError, "one length"),
        (contrastive_loss, (maps, index, labels, 0.0), ValueError, "temperature > 0; got 0"),
        (attention_masks, (maps[0], ints(0), 1, (8, 8)), ValueError, r"maps \[S, B, r, q\]"),
        (attention_masks, (maps, ints(0, 1), 2, (8, 8)), ValueError, r"mask_row \[S\]"),
        (attention_masks, (maps, ints(0, 1, 0, 1), 0, (8, 8)), ValueError, "rows >= 1"),
        (attention_masks, (maps, ints(0, 1, 0, 1), 2, (8,)), ValueError, r"size \(H, W\)"),
        (attention_tap, (q, k[:1], columns, 3), ValueError, r"q \[rows, queries, 3 \* D\]"),
        (attention_tap, (q, k, columns, 5), ValueError, r"q \[rows, queries, 5 \* D\]"),
        (attention_tap, (q, k, columns.long(), 3), TypeError, r"columns \[C\] as int32"),
        (attention_tap, (q, k, columns[None], 3), ValueError, r"columns \[C\]"),
        (attention_tap, (q, k.half(), columns, 3), TypeError, "one dtype"),
        (attention_tap, (q.mT.contiguous().mT, k, columns, 3), ValueError, "last dimension"),
    ]
    for op, arguments, error, message in wrong:
        with pytest.raises(error, match=f"{op.__name__}: .*{message}"):
            op(*arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"index": ints(0, 1, 2, 4)}, r"index in 0 \.\. 3; got \[0, 1, 2, 4\]"),
        ({"index": ints(0, 1, 2, -1)}, r"index in 0 \.\. 3"),
        ({"temperature": 0.0}, "temperature > 0; got 0.0"),
        ({"temperature": None}, "temperature > 0; got None"),
    ],
)
def test_wrong_arguments_of_the_loss_are_named(given, message):
    right = {"index": ints(0, 1, 2, 3), "labels": ints(0, 0, 1, 1)}
    with pytest.raises(ValueError, match="contrastive_loss: expected " + message):
        contrastive_loss(torch.rand(4, 1, 4, 4), **{**right, **given})
