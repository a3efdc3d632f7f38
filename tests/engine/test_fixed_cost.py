"""A second image of the same setting: nothing is looked for again, and nothing made again."""

from collections import Counter

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.adapters import AdaptedLayer
from cmlora_fast.adapters.peft import LayerAdapter
from cmlora_fast.adapters.weights import WeightStore
from cmlora_fast.benchmarks.engine.counts import counted
from torch import nn

from ..support import adapters, helpers, recording
from ..support.helpers import call, relative

RUN = 1e-4
NAMES = ["character_1", "style_1", "background_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
METHODS = [None, "switch", "composite", "cmlora"]


@pytest.fixture
def made(monkeypatch):
    """How often objects are made that one image needs and the next one finds."""
    counts = Counter()
    for owner, name in (
        (AdaptedLayer, "__init__"),
        (LayerAdapter, "__init__"),
        (WeightStore, "prepare"),
    ):
        original = getattr(owner, name)

        def count(*args, _original=original, _owner=owner, **kwargs):
            counts[_owner.__name__] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(owner, name, count)
    return counts


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", METHODS)
def test_second_image_looks_for_nothing(method, weights, made, monkeypatch):
    """As on a GPU: no walk over modules, no object per layer, one number read."""
    recording.pretend(monkeypatch)
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING, text=True)
    with cf.accelerate(pipe, method, weights=weights, backend="torch"):
        first = call(pipe, num_inference_steps=3)
        call(pipe, num_inference_steps=3)
        cf.summary(pipe)  # reads what it tells of the image before
        made.clear()
        with counted() as counts:
            again = call(pipe, num_inference_steps=3)
        assert torch.equal(first, again)
        assert counts["walks"] == 0
        assert counts["reads"] == 1 + 3  # each step also reads its timestep, which is the host's
        assert not made
        pipe.set_adapters(NAMES, [0.5, 1.0, 1.0])
        with counted() as counts:
            call(pipe, num_inference_steps=3)
    assert counts["walks"] > 0 and counts["reads"] > 1 + 3 and len(made) == 3  # they count


def test_second_image_of_clora(made):
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING, shape="one_layer", text=True)
    concepts = [cf.Concept("character_1", "fox"), cf.Concept("style_1", "coat")]
    method = cf.CLoRA(concepts=concepts, style_adapters=("background_1",), style_weight=0.5)
    with cf.accelerate(pipe, method):
        first = call(pipe, num_inference_steps=2, prompt=helpers.PROMPT)
        call(pipe, num_inference_steps=2)
        made.clear()
        with counted() as counts:
            again = call(pipe, num_inference_steps=2)
    assert torch.equal(first, again)
    assert counts["walks"] == 0 and not made


@torch.no_grad()
def base_through_data(pipe):
    for name, parameter in pipe.unet.named_parameters():
        if "base_layer.weight" in name:
            parameter.data += 0.02 * torch.randn_like(parameter)


def another_layer(pipe):
    """A layer put in the place of an adapted one."""
    block = pipe.unet.mid_block.resnets[0]
    torch.manual_seed(3)
    old = block.time_emb_proj
    old = getattr(old, "base_layer", old)
    block.time_emb_proj = nn.Linear(old.in_features, old.out_features)


def another_weight(pipe):
    with torch.no_grad():
        for layer in pipe.unet.modules():
            base = getattr(layer, "base_layer", None)
            if isinstance(base, nn.Linear):
                base.weight = nn.Parameter(1.1 * base.weight)


def renamed(pipe):
    """Names exchanged in PEFT's own dictionaries: the same modules under other keys."""
    for layer in pipe.unet.modules():
        for part in ("lora_A", "lora_B"):
            held = getattr(layer, part, None)
            if held is not None and {*NAMES[:2]} <= {*held}:
                one, two = (held[name] for name in NAMES[:2])
                held[NAMES[0]], held[NAMES[1]] = two, one
    pipe.set_adapters(NAMES[:1])


def hook(pipe):
    layer = pipe.unet.mid_block.resnets[0].conv1
    layer.register_forward_hook(lambda module, args, out: 1.5 * out)


def moved_there_and_back(pipe):
    pipe.unet.to(torch.float64)
    pipe.unet.to(torch.float32)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(1.2)


CHANGES = [base_through_data, another_layer, another_weight, renamed, hook, moved_there_and_back]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("change", CHANGES)
def test_change_after_images_alike(change, weights):
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    with cf.accelerate(pipe, weights=weights):
        before = [call(pipe, num_inference_steps=3) for _ in range(3)][-1]
        change(pipe)
        got = call(pipe, num_inference_steps=3)
    want = call(pipe, num_inference_steps=3)
    assert relative(got, want) < RUN
    assert relative(before, want) > 10 * RUN  # the change is seen


def test_base_weights_written_through_data_are_folded_anew_in_their_stacks(monkeypatch):
    recording.pretend(monkeypatch)
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    with cf.accelerate(pipe, backend="torch"):
        for _ in range(3):
            call(pipe, num_inference_steps=3)
        base_through_data(pipe)
        got = call(pipe, num_inference_steps=3)
    assert relative(got, call(pipe, num_inference_steps=3)) < RUN


def test_not_a_number_after_images_alike():
    """Refused, and not remembered as something that was read."""
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    with cf.accelerate(pipe):
        want = [call(pipe, num_inference_steps=2) for _ in range(2)][-1]
        factor = next(p for n, p in pipe.unet.named_parameters() if "lora_B.style_1" in n)
        old = factor.data.clone()
        factor.data.flatten()[-1] = float("nan")
        for _ in range(2):
            with pytest.raises(ValueError, match=r"adapter 'style_1'.*NaN"):
                call(pipe, num_inference_steps=2)
        factor.data.copy_(old)
        assert torch.equal(call(pipe, num_inference_steps=2), want)
