"""Samples that are the same run once per adapter subset until text is read."""

from collections import Counter

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.unet.inputs import UNetInputs, read_call
from diffusers.models.attention_processor import AttnProcessor2_0

from ..support import adapters, helpers
from ..support.clora_rows import clora
from ..support.helpers import call, relative
from ..support.loops import random_inputs, run_pipeline

NAMES = ["character_1", "background_1"]
CONVS = "|".join([adapters.ATTENTION, adapters.PROJECTIONS, adapters.RESNETS, r"^conv_in$"])
SINGLE, RUN = 1e-5, 1e-4  # one UNet call, a trajectory
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def inputs_of(pipe, order=(0, 0)):
    """A UNet call whose samples are equal where ``order`` is; every one has its own text."""
    inputs = helpers.unet_inputs(pipe, batch=len(order))
    return inputs | {"sample": inputs["sample"][list(order)]}


def rows_seen(pipe, run) -> Counter:
    """Rows that the first layers of each kind get, in all calls of ``run()``."""
    first, second = (pipe.unet.down_blocks[i].attentions[0] for i in (0, 1))
    block = first.transformer_blocks[0]
    layers = dict(
        conv_in=pipe.unet.conv_in,
        resnet=pipe.unet.down_blocks[0].resnets[0].conv1,
        proj_in=first.proj_in,
        first_self=block.attn1.to_out[0],
        first_text=block.attn2.to_out[0],
        next_self=second.transformer_blocks[0].attn1.to_out[0],
    )
    seen, handles = Counter(), []
    for name, layer in layers.items():
        hook = lambda layer, given, name=name: seen.update({name: len(given[0])})  # noqa: E731
        handles.append(layer.register_forward_pre_hook(hook))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def not_alike(monkeypatch):
    monkeypatch.setattr(UNetInputs, "period", lambda self: None)


@pytest.mark.parametrize(
    ("order", "period"),
    [
        ((0,), None),
        ((0, 1), None),
        ((0, 0), 1),
        ((0, 0, 0), 1),
        ((0, 1, 0, 1), 2),  # two images
        ((0, 1, 2, 0, 1, 2), 3),
        ((0, 1, 0, 1, 0, 1), 2),  # three guidance parts
        ((0, 0, 1, 1), None),
        ((0, 1, 0), None),
        ((0, 0, 0, 1), None),
    ],
)
def test_period(order, period):
    pipe = adapters.fresh(NAMES)
    assert read_call(pipe.unet, (), inputs_of(pipe, order)).period() == period


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("targets", [adapters.ATTENTION, CONVS], ids=["attention", "convs"])
@pytest.mark.parametrize("order", [(0, 0), (0, 1, 0, 1, 0, 1)], ids=str)
def test_rows_are_counted_and_equal(monkeypatch, order, targets, weights):
    pipe = adapters.fresh(NAMES, targets, shape="one_layer")
    inputs, out = inputs_of(pipe, order), []
    with torch.no_grad(), cf.accelerate(pipe, "composite", weights=weights):
        seen = rows_seen(pipe, lambda: out.append(pipe.unet(**inputs)[0]))
        not_alike(monkeypatch)
        rows_before = rows_seen(pipe, lambda: out.append(pipe.unet(**inputs)[0]))
    once, all_rows = 2 * len(set(order)), 2 * len(order)
    before_any_adapter = 1 if targets == CONVS else 2
    want = dict(
        conv_in=once // before_any_adapter,
        resnet=once // before_any_adapter,
        proj_in=once,
        first_self=once,
        first_text=all_rows,
        next_self=all_rows,
    )
    assert seen == want
    assert rows_before["first_self"] == all_rows
    assert relative(*out) < SINGLE


@pytest.mark.parametrize("max_rows", [None, 3])
@pytest.mark.parametrize("shape", ["one_layer", "dummy"])  # dummy: no text in the shallow way down
@pytest.mark.parametrize("method", [cf.Composite(), cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_images_are_equal(monkeypatch, method, shape, max_rows):
    pipe = adapters.fresh(NAMES, CONVS, shape=shape)
    given = dict(num_inference_steps=4, num_images_per_prompt=2)
    with cf.accelerate(pipe, method, max_rows=max_rows):
        got = call(pipe, **given)
        not_alike(monkeypatch)
        assert relative(got, call(pipe, **given)) < RUN


BLOCKS = [
    dict(transformer_layers_per_block=2),
    dict(only_cross_attention=True),
    dict(use_linear_projection=True),
]


@pytest.mark.parametrize("config", BLOCKS, ids=str)
def test_lossless_with_other_blocks(config):
    pipe = helpers.pipeline("sd", "one_layer")
    pipe.unet = helpers.unet("one_layer", **config)
    adapters.add_many(pipe, NAMES, CONVS)
    inputs = inputs_of(pipe)
    with torch.no_grad():
        want = pipe.unet(**inputs)[0]
        with cf.accelerate(pipe):
            assert relative(pipe.unet(**inputs)[0], want) < SINGLE


@pytest.mark.parametrize("max_rows", [None, 3])
def test_gradients_of_clora_are_equal(monkeypatch, max_rows):
    pipe = adapters.fresh(["character_1", "clothing_1", "object_1"], CONVS, shape="one_layer")
    inputs = random_inputs(pipe, steps=2, size=(16, 16))
    with cf.accelerate(pipe, clora(pipe), max_rows=max_rows):
        out = []
        seen = rows_seen(pipe, lambda: out.append(run_pipeline(pipe, inputs)))
        losses = [step.loss for step in cf.summary(pipe).steps]
        not_alike(monkeypatch)
        out.append(run_pipeline(pipe, inputs))
        for step, found in zip(cf.summary(pipe).steps, losses, strict=True):
            assert found == pytest.approx(step.loss, rel=1e-5)
    assert relative(*out) < RUN
    if max_rows is None:
        assert 2 * seen["first_self"] == seen["first_text"]


def test_halves_that_differ_run_apart():
    """What changes one guidance part alone, as a scheduler's scaling might."""
    pipe = adapters.fresh(NAMES, CONVS, shape="one_layer")
    scale = pipe.scheduler.scale_model_input

    def uneven(sample, t):
        return scale(sample, t) * torch.tensor([1.0, 0.9])[:, None, None, None]

    pipe.scheduler.scale_model_input = uneven
    want = call(pipe, num_inference_steps=3)
    with cf.accelerate(pipe):
        seen = rows_seen(pipe, lambda: want.sub_(call(pipe, num_inference_steps=3)))
    assert want.abs().max() < RUN
    assert set(seen.values()) == {3 * 2}


def test_time_embeddings_that_differ_keep_rows_apart():
    """SDXL's hold the pooled prompt."""
    pipe = adapters.fresh(NAMES, adapters.ATTENTION, kind="sdxl", shape="sdxl")
    inputs, seen = inputs_of(pipe), []
    resnet = pipe.unet.down_blocks[0].resnets[0].conv1
    resnet.register_forward_pre_hook(lambda layer, given: seen.append(len(given[0])))
    with torch.no_grad(), cf.accelerate(pipe):
        pipe.unet(**inputs)
    assert seen == [2]


class Counting(AttnProcessor2_0):
    """Somebody's processor, which may look at the whole batch."""

    def __init__(self):
        self.seen = []

    def __call__(self, attn, hidden_states, *args, **kwargs):
        self.seen.append(len(hidden_states))
        return super().__call__(attn, hidden_states, *args, **kwargs)


def test_processors_of_others_see_every_sample():
    pipe = adapters.fresh(NAMES, shape="one_layer")
    attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.processor = processor = Counting()
    with torch.no_grad(), cf.accelerate(pipe):
        pipe.unet(**inputs_of(pipe))
    assert processor.seen == [2]


def test_blocks_of_others_see_every_sample():
    """Whose order is not known: here text comes first."""
    pipe = adapters.fresh(NAMES, shape="one_layer")
    block = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]

    def text_first(x, encoder_hidden_states, **_):
        x = x + encoder_hidden_states.mean(1, keepdim=True)[..., : x.shape[-1]]
        x = x + block.attn1(block.norm1(x))
        return x + block.ff(block.norm3(x))

    block.forward = text_first
    inputs = inputs_of(pipe)
    with torch.no_grad():
        want = pipe.unet(**inputs)[0]
        with cf.accelerate(pipe):
            assert relative(pipe.unet(**inputs)[0], want) < SINGLE
