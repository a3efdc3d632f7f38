import math

import pytest
import torch
import torch.nn.functional as F
from cmlora_fast.ops import reference as ops
from torch import Tensor

# The golden maps, similarities and gradient of the method's specification, four pixels each.
GOLDEN = [[0.1, 0.7, 0.2, 0.4], [0.0, 0.6, 0.3, 0.3], [0.5, 0.1, 0.9, 0.2], [0.4, 0.3, 0.8, 0.1]]
GOLDEN_LOSS = 0.4966401232
GOLDEN_GRADIENT = [
    [-0.19452890, -0.02847618, 0.24907908, -0.02607399],
    [-0.21696435, -0.21696435, 0.55680864, -0.12287994],
    [-0.03277715, -0.15121336, -0.00755456, 0.19154506],
    [-0.14206472, 0.52661088, -0.08957537, -0.29497078],
]


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def spelled_out(maps: Tensor, index, labels, temperature=0.5) -> Tensor:
    """The loss of one image pair by pair, min-max scaled as released. maps [S, r, q]."""
    vectors = []
    for s in index:
        a = maps[s].flatten() - maps[s].min()
        a = a / a.max()
        vectors.append(a / a.norm())
    terms = []
    for i, anchor in enumerate(vectors):
        others = [anchor @ v for v, y in zip(vectors, labels, strict=True) if y != labels[i]]
        for j, positive in enumerate(vectors):
            if i != j and labels[i] == labels[j]:
                logits = torch.stack([anchor @ positive, *others]) / temperature
                terms.append(-F.log_softmax(logits, 0)[0])
    return torch.stack(terms).mean()


GROUPS = [  # index, labels
    ([0, 1, 2, 3], [0, 0, 1, 1]),
    ([3, 0, 1, 2, 4, 5, 0], [2, 0, 0, 1, 1, 2, 1]),  # unordered, map 0 in two concepts
    ([0, 1, 2], [0, 0, 1]),  # a concept of one map
    ([0, 1, 1, 5], [0, 0, 1, 0]),  # uneven, one map twice
]


def test_golden_values():
    maps = torch.tensor(GOLDEN, dtype=torch.float64).view(4, 1, 2, 2)
    loss, gradient = ops.contrastive_loss(maps, ints(0, 1, 2, 3), ints(0, 0, 1, 1))
    assert abs(loss.item() - GOLDEN_LOSS) < 1e-8
    wanted = torch.tensor(GOLDEN_GRADIENT, dtype=torch.float64)
    assert (gradient.view(4, 4) - wanted).abs().max() < 1e-8
    loss, gradient = ops.contrastive_loss(maps.float(), ints(0, 1, 2, 3), ints(0, 0, 1, 1))
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(gradient.view(4, 4).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 0.07, 2.0])
@pytest.mark.parametrize("index, labels", GROUPS)
def test_matches_the_loss_spelled_out_and_autograd(index, labels, temperature):
    maps = torch.rand(6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    loss, gradient = ops.contrastive_loss(maps.detach(), ints(*index), ints(*labels), temperature)
    wanted = torch.stack([spelled_out(maps[:, b], index, labels, temperature) for b in range(3)])
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(wanted.sum(), maps)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("index, labels", GROUPS)
def test_matches_finite_differences(index, labels):
    maps = torch.rand(6, 1, 3, 3, dtype=torch.float64)
    tables = ints(*index), ints(*labels)
    gradient = ops.contrastive_loss(maps, *tables)[1]
    step, slope = 1e-6, torch.zeros_like(maps)
    for place in range(maps.numel()):
        move = torch.zeros_like(maps)
        move.view(-1)[place] = step
        up, down = (ops.contrastive_loss(maps + m, *tables)[0] for m in (move, -move))
        slope.view(-1)[place] = (up - down) / (2 * step)
    assert (gradient - slope).abs().max() < 1e-8


def test_ties_share_the_gradient_of_the_minimum():
    maps = torch.rand(4, 1, 2, 4, dtype=torch.float64)
    maps[1, 0, 0, :3] = 0.01  # three least pixels
    maps.requires_grad_()
    (slope,) = torch.autograd.grad(spelled_out(maps[:, 0], [0, 1, 2, 3], [0, 0, 1, 1]), maps)
    gradient = ops.contrastive_loss(maps.detach(), ints(0, 1, 2, 3), ints(0, 0, 1, 1))[1]
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


def test_known_values():
    same = torch.rand(1, 1, 4, 4, dtype=torch.float64).expand(5, 1, 4, 4)
    loss = ops.contrastive_loss(same, ints(0, 1, 2, 3, 4), ints(0, 0, 1, 1, 1))[0]
    pairs = [math.log(1 + 3)] * 2 + [math.log(1 + 2)] * 6
    assert loss.item() == pytest.approx(sum(pairs) / 8, abs=1e-12)
    apart = torch.zeros(4, 1, 2, 2, dtype=torch.float64)
    apart[:2, 0, 0, 0] = apart[2:, 0, 1, 1] = 1
    loss = ops.contrastive_loss(apart, ints(0, 1, 2, 3), ints(0, 0, 1, 1))[0]
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-12)


def test_scale_and_offset_of_a_map_do_not_matter():
    maps, tables = torch.rand(4, 1, 4, 4, dtype=torch.float64), (ints(0, 1, 2, 3), ints(0, 0, 1, 1))
    loss, gradient = ops.contrastive_loss(maps, *tables)
    other, slope = ops.contrastive_loss(3 * maps + 0.5, *tables)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(3 * slope, gradient)
    assert gradient.sum((2, 3)).abs().max() < 1e-12  # an offset moves nothing


@pytest.mark.parametrize(
    "index, labels",
    [
        ([0, 1, 2], [0, 0, 0]),  # a single concept
        ([0, 1], [0, 1]),  # no pair
        ([0], [0]),
        ([], []),
    ],
)
def test_nothing_to_contrast_gives_zero(index, labels):
    maps = torch.rand(3, 2, 4, 4)
    loss, gradient = ops.contrastive_loss(maps, ints(*index), ints(*labels))
    assert torch.equal(loss, torch.zeros(2)) and torch.equal(gradient, torch.zeros_like(maps))


def test_flat_maps_take_no_part():
    maps = torch.rand(6, 2, 4, 4)
    maps[4, 0] = 0.013
    maps[5, 0] = 0.013 + 1e-9 * torch.rand(4, 4)  # rounding noise
    loss, gradient = ops.contrastive_loss(maps, ints(0, 1, 2, 3, 4, 5), ints(0, 0, 1, 1, 0, 1))
    assert loss.isfinite().all() and not gradient[4:, 0].any() and gradient[4:, 1].any()
    others = ops.contrastive_loss(maps[:4], ints(0, 1, 2, 3), ints(0, 0, 1, 1))
    torch.testing.assert_close(loss[0], others[0][0])
    torch.testing.assert_close(gradient[:4, 0], others[1][:, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_maps_are_computed_in_float32(dtype):
    maps = (torch.rand(4, 1, 16, 16) / 50).to(dtype)
    tables = ints(0, 1, 2, 3), ints(0, 0, 1, 1)
    got, exact = ops.contrastive_loss(maps, *tables), ops.contrastive_loss(maps.double(), *tables)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=0)
    assert (got[1] - exact[1]).abs().max() < 1e-4 * exact[1].abs().max()


def test_a_step_along_the_gradient_lowers_the_loss():
    maps, tables = torch.rand(4, 1, 8, 8, dtype=torch.float64), (ints(0, 1, 2, 3), ints(0, 0, 1, 1))
    loss, gradient = ops.contrastive_loss(maps, *tables)
    assert ops.contrastive_loss(maps - 1e-2 * gradient, *tables)[0] < loss


def test_sharp_temperatures_do_not_overflow():
    maps = torch.rand(4, 1, 4, 4)
    loss, gradient = ops.contrastive_loss(maps, ints(0, 1, 2, 3), ints(0, 1, 0, 1), 1e-3)
    assert loss.isfinite().all() and gradient.isfinite().all()
