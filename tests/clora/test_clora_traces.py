"""Every loss and mask of the recorded runs of the release, from their recorded maps."""

import pytest
import torch
from cmlora_fast.clora.tracked import Tracked
from cmlora_fast.ops import reference as ops

from ..support.clora_traces import NAMES, RECORDED, load, method_of

pytestmark = RECORDED


def tracked_maps(maps, tracked):
    """Recorded maps (T, J, r, r, 77) -> [S, T, r, r]: the steps as images of a batch."""
    return maps[:, tracked.row, :, :, tracked.token].movedim(1, 0).movedim(0, 1)


def last_of_each_step(method, losses):
    """{step: loss} of each step's last evaluation: the recorded maps are those of its forward."""
    last, count = {}, 0
    for step in range(10**3):
        updates = method.updates(step, 10**3)
        count += updates
        if updates:
            last[step] = losses[count - 1].item()
    assert count == len(losses)
    return last


@pytest.mark.parametrize("name", NAMES)
def test_recorded_maps_are_whole_softmaxes(name):
    """The layout of the recording, on which everything below relies."""
    spec, recorded = load(name)
    maps = recorded["maps"]
    side = spec["hw"] // 4
    assert maps.shape == (spec["steps"], len(spec["loras"]), side, side, 77)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_losses(name, dtype):
    """Of the losses of a step, its last: the maps of the others are not recorded."""
    spec, recorded = load(name)
    method = method_of(spec)
    tracked = Tracked.of(method.rows)
    maps = tracked_maps(recorded["maps"], tracked).to(dtype)
    assert maps.shape[:2] == (len(tracked.row), spec["steps"])
    index, labels = torch.tensor(tracked.index), torch.tensor(tracked.labels)
    losses = ops.contrastive_loss(maps, index, labels, method.temperature)[0]
    wanted = last_of_each_step(method, recorded["losses"])
    assert sorted(wanted) == list(range(spec["max_iter_to_alter"] * spec["latent_update"]))
    for step, value in wanted.items():
        assert losses[step].item() == pytest.approx(value, rel=1e-6)  # recorded in float32


@pytest.mark.parametrize("name", NAMES)
def test_masks(name):
    spec, recorded = load(name)
    method = method_of(spec)
    tracked = Tracked.of(method.rows)
    maps = tracked_maps(recorded["maps"], tracked)
    masks = ops.attention_masks(
        maps,
        torch.tensor(tracked.mask_row),
        method.row_count,
        (spec["hw"], spec["hw"]),
        method.mask_threshold_alpha,
    )
    after = method.apply_mask_after
    assert torch.equal(masks[:, after:].movedim(0, 1), recorded["masks"][after:])
    assert (recorded["masks"][:after] == 1).all()


def test_the_recordings_cover_something():
    """Several losses per step, overlaps, an empty background and steps without masks."""
    assert [len(load(name)[1]["losses"]) for name in NAMES] == [10, 5, 0]
    masks = load("clora_mask_only")[1]["masks"]
    assert (masks[:2] == 1).all() and not masks[2:, 0].any()
    claims = load("clora2")[1]["masks"].sum(1)
    assert claims.min() == 1 and claims.max() > 1
