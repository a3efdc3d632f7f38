"""Masks that a user gives: pictures as data, and each adapter in its own region."""

import copy
import dataclasses

import cmlora_fast as cf
import numpy as np
import pytest
import torch
from cmlora_fast import CLoRA, CMLoRA, Composite, Row
from cmlora_fast.clora.masks import pixel_shares, resized, row_masks
from cmlora_fast.methods.regions import Region
from PIL import Image

from ..support import adapters, helpers
from ..support.loops import random_inputs, run_pipeline

NAMES = ["character_1", "background_1"]
LEFT = np.zeros((16, 16), bool)
LEFT[:, :8] = True
RIGHT = ~LEFT


def fresh(names=NAMES, **options):
    return adapters.fresh(names, **options)


def first_step(pipe, method, **given):
    """Latents after one step and the record of that step."""
    with cf.accelerate(pipe, method):
        latents = run_pipeline(pipe, random_inputs(pipe, steps=1, **given))[0]
        return latents, cf.summary(pipe).steps[0]


def by_adapter(pipe, **given):
    """Latents after one step with each adapter alone."""
    found = []
    for name in NAMES:
        pipe.set_adapters([name])
        found.append(run_pipeline(pipe, random_inputs(pipe, steps=1, **given))[0])
    pipe.set_adapters(NAMES)
    return found


@pytest.mark.parametrize("method", [Composite, CMLoRA])
def test_each_adapter_draws_its_region(method):
    pipe = fresh()
    one, two = by_adapter(pipe)
    got, record = first_step(pipe, method(masks=dict(zip(NAMES, (LEFT, RIGHT), strict=True))))
    # One step of DDIM is affine in the prediction: regions of latents are regions of predictions.
    assert helpers.relative(got, torch.where(torch.from_numpy(LEFT), one, two)) < 1e-5
    assert record.weights == pytest.approx(dict.fromkeys(NAMES, 0.5))


def test_overlaps_share_and_what_is_left_over_is_as_without_masks():
    pipe = fresh()
    one, two = by_adapter(pipe)
    quarter = np.zeros((16, 16), bool)
    quarter[:8, :8] = True
    masks = {"character_1": LEFT, "background_1": quarter}
    got, record = first_step(pipe, CMLoRA(masks=masks, cache_interval=1))
    share = 1.5 / 2.5  # of the leading one of two: coefficient N - 0.5
    weight = torch.full((16, 16), share)
    weight[8:, :8] = 1
    wanted = weight * one + (1 - weight) * two
    assert helpers.relative(got, wanted) < 1e-5
    assert record.weights == pytest.approx(
        {"character_1": weight.mean().item(), "background_1": 1 - weight.mean().item()}
    )


def test_without_a_picture_an_adapter_draws_everywhere():
    pipe = fresh()
    one, two = by_adapter(pipe)
    got, _ = first_step(pipe, Composite(masks={"character_1": LEFT}))
    wanted = torch.where(torch.from_numpy(LEFT), (one + two) / 2, two)
    assert helpers.relative(got, wanted) < 1e-5


@pytest.mark.parametrize("interval", [1, 2])
def test_a_white_picture_changes_nothing(interval):
    pipe = fresh(shape="sd15")
    inputs = random_inputs(pipe, steps=4)
    white = dict.fromkeys(NAMES, np.ones((4, 4)))
    images = []
    for masks in (None, white):
        with cf.accelerate(pipe, Composite(cache_interval=interval, masks=masks)):
            images.append(run_pipeline(pipe, inputs))
    assert helpers.relative(*images) < 1e-5


def test_images_of_a_batch_share_the_masks_also_in_chunks_and_not_square():
    pipe = fresh()
    method = Composite(masks={"character_1": LEFT, "background_1": RIGHT})
    given = dict(images=2, steps=1, size=(8, 24))
    one, two = by_adapter(pipe, **{k: v for k, v in given.items() if k != "steps"})
    wanted = torch.where(torch.arange(24) < 12, one, two)
    for options in ({}, {"max_rows": 3}):
        with cf.accelerate(pipe, method, **options):
            assert (
                helpers.relative(run_pipeline(pipe, random_inputs(pipe, **given))[0], wanted) < 1e-5
            )


def test_clora_takes_given_masks_for_found_ones():
    """The base row gets what is left; the loss still moves the latents."""
    pipe = fresh(shape="one_layer")
    draw = torch.Generator().manual_seed(1)
    rows = [
        Row(None, "", "", [], [[2], [5]]),
        Row("character_1", "", "", [2], [[2], [5]]),
        Row("background_1", "", "", [5], [[2], [5]]),
    ]
    own = dict(row_prompt_embeds=torch.randn(3, 77, helpers.WIDTH, generator=draw))
    own["row_negative_prompt_embeds"] = torch.randn(1, 77, helpers.WIDTH, generator=draw)
    strip = np.zeros((16, 16), bool)
    strip[:, 12:] = True
    masks = {"character_1": LEFT, "background_1": strip}
    quick = dict(iterative_steps=(), max_iter_to_alter=1, **own)
    with cf.accelerate(pipe, CLoRA(rows=rows, masks=masks, **quick), record=True):
        run_pipeline(pipe, random_inputs(pipe, steps=2))
        summary = cf.summary(pipe)
    wanted = torch.from_numpy(np.stack([~(LEFT | strip), LEFT, strip])).float()
    assert torch.equal(summary.masks, wanted.expand(2, 3, 16, 16))
    assert summary.steps[0].mask_area == pytest.approx(
        {"__base__": 0.25, "character_1": 0.5, "background_1": 0.25}
    )
    assert len(summary.steps[0].loss) == 1


def test_given_masks_need_no_attention_maps():
    """A UNet without layers at the tapped stage composes by given masks all the same."""
    pipe = fresh(shape="dummy")
    rows = [Row(None, "a fox"), Row("character_1", "a green fox")]
    method = CLoRA(rows=rows, masks={"character_1": LEFT}, latent_update=False)
    with cf.accelerate(pipe, method):
        assert helpers.call(pipe, num_inference_steps=1).isfinite().all()


def test_soft_pixels():
    grey = np.full((4, 4), 128, np.uint8)
    shares = torch.tensor([[0.75], [0.25]])
    half = 128 / 255
    masks = torch.stack([resized(Region.of(grey), (4, 4), "cpu"), torch.zeros(4, 4)])
    weight = pixel_shares(shares, masks)[0, 0, 0, 0].item()
    # Half of the pixel is the first one's, the rest goes by shares.
    rest = 1 - half
    assert weight == pytest.approx(0.75 / (0.75 + 0.25 * rest), rel=1e-6)
    rows = row_masks({"a": Region.of(grey)}, [None, "a"], (2, 2), "cpu")
    torch.testing.assert_close(rows[:, 0, 0], torch.tensor([rest, half]))


PICTURES = {
    "bool": LEFT,
    "bytes": LEFT.astype(np.uint8) * 255,
    "ones": LEFT.astype(np.int64),
    "float": LEFT.astype(np.float64),
    "tensor": torch.from_numpy(LEFT),
    "one channel": torch.from_numpy(LEFT)[None].half(),
    "last channel": LEFT[:, :, None],
    "PIL 1": Image.fromarray(LEFT),
    "PIL RGB": Image.fromarray(np.repeat(LEFT[:, :, None].astype(np.uint8) * 255, 3, 2)),
    "PIL F": Image.fromarray(LEFT.astype(np.float32)),
    "large": np.kron(LEFT, np.ones((8, 8), bool)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_kinds_of_pictures(kind):
    got = resized(Region.of(PICTURES[kind]), (16, 16), torch.device("cpu"))
    assert got.dtype == torch.float32 and torch.equal(got, torch.from_numpy(LEFT).float())


WRONG = [
    ({}, "expected None or"),
    ([LEFT], "expected None or"),
    ({3: LEFT}, "names of adapters as keys; got 3"),
    ({"a": "left.png"}, r"\['a'\]: expected a picture"),
    ({"a": [[0, 1]]}, "expected a picture"),
    ({"a": np.zeros((2, 4, 4))}, r"got ndarray \(2, 4, 4\)"),
    ({"a": np.ones(4)}, "expected a picture"),
    ({"a": np.ones((0, 4))}, "expected a picture"),
    ({"a": np.full((4, 4), 1.5)}, "other values"),
    ({"a": np.full((4, 4), np.nan)}, "other values"),
    ({"a": np.full((4, 4), 300)}, "other values"),
    ({"a": np.full((4, 4), -1)}, "other values"),
    ({"a": np.zeros((4, 4))}, "a pixel above 0"),
    ({"a": np.ones((4, 4), complex)}, "expected a picture"),
]


@pytest.mark.parametrize("masks, message", WRONG, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("method", [Composite, CMLoRA])
def test_what_is_no_mask_is_named(method, masks, message):
    with pytest.raises(ValueError, match=rf"{method.__name__}\.masks.*{message}"):
        method(masks=masks)


def test_methods_with_masks_are_values():
    one, same = (CMLoRA(masks={"a": LEFT.copy(), "b": RIGHT}) for _ in range(2))
    assert one == same and hash(one) == hash(same) and one != CMLoRA(masks={"a": LEFT})
    assert one != CMLoRA() and hash(CMLoRA()) == hash(CMLoRA())
    again = dataclasses.replace(one, threshold=0.3)
    assert again.masks == one.masks and copy.deepcopy(one) == one
    assert "16" in repr(one) and "\\x" not in repr(one)
    mine = LEFT.copy()
    method = Composite(masks={"a": mine})
    mine[:] = False
    assert method == Composite(masks={"a": LEFT})
    with pytest.raises(TypeError):
        method.masks["a"] = RIGHT


def test_names_and_released_loops():
    pipe = fresh()
    with pytest.raises(ValueError, match=r"Composite\.masks: expected names of loaded .*'fox'"):
        cf.enable(pipe, Composite(masks={"fox": LEFT}))
    with pytest.raises(ValueError, match=r"CMLoRA\.masks: .*reference_compat=True"):
        CMLoRA(masks={"a": LEFT}, reference_compat=True)
