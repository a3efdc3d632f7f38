"""On a CPU a step's rows may run in groups: the same sums, and no base layer twice."""

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.unet import kit as fast
from cmlora_fast.unet.fast_layers import _pieces
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from ..support import adapters, helpers
from ..support.helpers import call, relative
from ..support.uses import count

NAMES = ["character_1", "style_1", "background_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    ("rows", "tokens", "most"),
    [(10, 64, 640), (10, 64, 128), (3, 64, 130), (2, 65, 64), (2, 64, 7), (2, 5, 0)],
)
def test_pieces_cover_every_token_once(rows, tokens, most):
    seen = torch.zeros(rows, tokens, dtype=torch.int32)
    for piece in _pieces(rows, tokens, most):
        assert seen[piece].numel() <= max(1, most)
        seen[piece] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("targets", [adapters.EVERYTHING, adapters.ATTENTION], ids=["all", "some"])
@pytest.mark.parametrize("weights", ["fold", "delta"])
def test_feed_forwards_in_pieces(monkeypatch, targets, weights):
    pipe = adapters.fresh(NAMES, targets)
    with cf.accelerate(pipe, "composite", weights=weights):
        whole = call(pipe, num_inference_steps=2)
        for largest in (1 << 10, 1 << 14):  # some tokens of a row, some rows
            monkeypatch.setattr(fast, "LARGEST", largest)
            assert relative(call(pipe, num_inference_steps=2), whole) < 1e-4


@pytest.mark.parametrize("max_rows", [None, 3])
@pytest.mark.parametrize("images", [1, 2])
def test_images_stay_channels_last(images, max_rows):
    """In another order the fast forwards copy every image, or leave it to the slow ones."""
    pipe = adapters.fresh(NAMES)
    kinds = ResnetBlock2D | Transformer2DModel | torch.nn.Conv2d
    orders = []

    def note(module, inputs):
        orders.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in pipe.unet.modules():
        if isinstance(module, kinds):
            module.register_forward_pre_hook(note)
    with cf.accelerate(pipe, cf.CMLoRA(cache_interval=2), max_rows=max_rows):
        call(pipe, num_inference_steps=3, num_images_per_prompt=images)
    assert orders
    assert all(orders)


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", [cf.Composite(), cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_partly_adapted_layers_run_once(method, weights):
    """Adapters with different targets: rows share some base layers and not others."""
    pipe = adapters.add_mixture(helpers.pipeline("sd", "dummy"))
    uses, calls = count(pipe, method, {"weights": weights}, steps=4)
    for step in calls:
        assert not {name: times for name, times in step.items() if times > 1}
    assert any((*uses, *calls))
