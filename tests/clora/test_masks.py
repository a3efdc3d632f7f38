import pytest
import torch
import torch.nn.functional as F
from cmlora_fast.clora.masks import pixel_shares
from cmlora_fast.ops import reference as ops


def picture(*lines):
    return torch.tensor([[float(c == "#") for c in line] for line in lines])


def masks_of(maps, mask_row, rows, *, size=None, **options):
    table = torch.tensor(mask_row, dtype=torch.int32)
    return ops.attention_masks(maps, table, rows, size or tuple(maps.shape[2:]), **options)


def test_union_of_strictly_larger_pixels_of_each_map():
    small = torch.tensor([[0.1, 0.4], [0.41, 1.0]]) / 100  # its own maximum counts
    large = torch.tensor([[1.0, 0.2], [0.0, 0.0]])
    maps = torch.stack([small, large, large])[:, None]
    masks = masks_of(maps, [1, 1, -1], 3, threshold=0.4)
    assert torch.equal(masks[1, 0], picture("#.", "##"))
    assert torch.equal(masks[2, 0], picture("..", ".."))  # no map at all
    assert torch.equal(masks[0, 0], picture(".#", ".."))  # what is left
    exact = torch.tensor([[0.5, 1.0]], dtype=torch.float64)[None, None]
    assert masks_of(exact, [0], 2, threshold=0.5)[0].tolist() == [[[1.0, 1.0]]]  # as the rest
    assert masks_of(exact, [1], 2, threshold=0.5)[1].tolist() == [[[0.0, 1.0]]]


def test_masks_overlap_and_row_zero_may_claim():
    maps = torch.stack([picture("##.", "..."), picture(".#.", ".#."), picture("...", "..#")])
    masks = masks_of(maps[:, None], [1, 2, 0], 3)
    assert torch.equal(masks[:, 0].sum(0), torch.tensor([[1.0, 2, 1], [1, 1, 1]]))
    assert torch.equal(masks[0, 0], picture("..#", "#.#"))


SHAPE = picture(
    ".......",
    ".#...#.",
    "...##..",
    "...##..",
    "#..##..",
    ".......",
)
GROWN = picture("###.###", "#######", "#######", "######.", "######.", "######.")


def grown(mask):
    """3x3 dilation by shifts, nothing outside."""
    wide = F.pad(mask, (1, 1, 1, 1))
    h, w = mask.shape
    return torch.stack([wide[y : y + h, x : x + w] for y in range(3) for x in range(3)]).amax(0)


def shrunk(mask):
    """3x3 erosion by shifts, foreground outside."""
    wide = F.pad(mask, (1, 1, 1, 1), value=1.0)
    h, w = mask.shape
    return torch.stack([wide[y : y + h, x : x + w] for y in range(3) for x in range(3)]).amin(0)


STEPS = {
    "dilate": grown,
    "erode": shrunk,
    "opening": lambda mask: grown(shrunk(mask)),
    "closing": lambda mask: shrunk(grown(mask)),
}


@pytest.mark.parametrize("bits", range(16))
def test_morphology_in_order(bits):
    options = {name: bool(bits >> k & 1) for k, name in enumerate(STEPS)}
    maps = torch.stack([SHAPE, (torch.rand(6, 7) > 0.3).float()])[:, None]
    masks = masks_of(maps, [1, 2], 3, **options)
    for row in (1, 2):
        wanted = maps[row - 1, 0]
        for name, step in STEPS.items():
            wanted = step(wanted) if options[name] else wanted
        assert torch.equal(masks[row, 0], wanted)
    assert torch.equal(masks[0, 0], (masks[1:, 0].sum(0) == 0).float())


def test_dilation_by_hand():
    masks = masks_of(SHAPE[None, None], [1], 2, dilate=True)
    assert torch.equal(masks[1, 0], GROWN)


def test_border_counts_as_foreground_for_erosion():
    corner = picture("##..", "##..", "....")
    masks = masks_of(corner[None, None], [1], 2, erode=True)
    assert torch.equal(masks[1, 0], picture("#...", "....", "...."))


@pytest.mark.parametrize(
    "stage, size",
    [
        ((8, 8), (32, 32)),
        ((4, 6), (16, 24)),  # not square
        ((6, 4), (24, 16)),
        ((3, 5), (9, 17)),  # latents that 4 does not divide
    ],
)
def test_nearest_upsampling(stage, size):
    maps = torch.rand(2, 3, *stage)
    small = masks_of(maps, [1, 2], 3, threshold=0.7)
    large = masks_of(maps, [1, 2], 3, size=size, threshold=0.7)
    assert large.shape == (3, 3, *size)
    y, x = (torch.arange(n) * s // n for n, s in zip(size, stage, strict=True))
    assert torch.equal(large, small[..., y[:, None], x])
    assert (large.sum(0) >= 1).all()


def test_images_do_not_mix():
    maps = torch.rand(4, 3, 5, 6)
    together = masks_of(maps, [1, 1, 2, -1], 3, closing=True)
    for b in range(3):
        alone = masks_of(maps[:, b : b + 1], [1, 1, 2, -1], 3, closing=True)
        assert torch.equal(together[:, b : b + 1], alone)


def fuse(out, noise, masks, scale=None):
    ops.combine_(out, noise, ops.mask_shares(masks), scale)


def blend(noise, masks):
    """The fusion of one image, pixel by pixel of each guidance part. noise [J, C, H, W]."""
    return (masks[:, None] * noise).sum(0) / masks.sum(0)


def test_fuse_averages_the_claimants():
    noise = torch.randn(2, 3, 2, 4, 5, 7)
    masks = ops.claim_rest((torch.rand(3, 2, 5, 7) > 0.6).float())
    out = torch.full((2, 2, 4, 5, 7), float("nan"))
    fuse(out, noise, masks)
    for g in range(2):
        for b in range(2):
            torch.testing.assert_close(out[g, b], blend(noise[g, :, b], masks[:, b]))
    lone = masks[:, 0].sum(0) == 1
    owner = masks[:, 0].argmax(0)
    taken = noise[0, :, 0].gather(0, owner.expand(1, 4, 5, 7))[0]
    assert torch.equal(out[0, 0][:, lone], taken[:, lone])


def test_guidance_commutes_with_the_blend():
    noise = torch.randn(2, 3, 1, 4, 6, 6, dtype=torch.float64)
    masks = (torch.rand(3, 1, 6, 6) > 0.5).double()
    parts, guided = noise.new_empty(2, 1, 4, 6, 6), noise.new_empty(1, 4, 6, 6)
    fuse(parts, noise, masks)
    fuse(guided, noise, masks, 7.5)
    torch.testing.assert_close(guided, parts[0] + 7.5 * (parts[1] - parts[0]))
    each = noise[:1] + 7.5 * (noise[1:] - noise[:1])
    first = guided.clone()
    fuse(first[None], each, masks)
    torch.testing.assert_close(first, guided)


@pytest.mark.parametrize("claim", [1.0, 0.0], ids=["by all", "by nobody"])
def test_what_is_claimed_alike_is_the_plain_mean(claim):
    noise, out = torch.randn(1, 4, 2, 4, 3, 3), torch.empty(1, 2, 4, 3, 3)
    fuse(out, noise, torch.full((4, 2, 3, 3), claim))
    torch.testing.assert_close(out, noise.mean(1))


def test_one_row_is_itself_and_low_precision_is_rounded_once():
    noise = torch.randn(2, 1, 1, 4, 3, 3)
    out = torch.empty(2, 1, 4, 3, 3)
    fuse(out, noise, torch.ones(1, 1, 3, 3))
    assert torch.equal(out, noise[:, 0])
    noise, masks = torch.randn(2, 3, 1, 4, 8, 8).bfloat16(), torch.rand(3, 1, 8, 8)
    exact, rounded = torch.empty(1, 4, 8, 8), torch.empty(1, 4, 8, 8).bfloat16()
    fuse(exact, noise.float(), masks, 7.5)
    fuse(rounded, noise, masks, 7.5)
    assert torch.equal(rounded, exact.bfloat16())


def test_shares_sum_to_one():
    masks = (torch.rand(3, 2, 4, 4) > 0.5).float()
    shares = ops.mask_shares(masks)
    torch.testing.assert_close(shares.sum(0), torch.ones(2, 4, 4))
    assert shares.isfinite().all()


def test_pixels_that_only_a_row_of_no_share_claims_have_shares():
    shares = pixel_shares(torch.tensor([[1.0], [0.0]]), torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]))
    assert shares.flatten(1).tolist() == [[0.5, 1.0], [0.5, 0.0]]
