"""Which adapters compose, and how strongly: PEFT's answer, whatever is asked for."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def three(shape="one_layer"):
    names = ["character_1", "style_1", "background_1"]
    return adapters.fresh(names, adapters.EVERYTHING, shape=shape)


def same(pipe, limit=RUN, options=(), **given):
    given = {"num_inference_steps": 3, **given}
    want = call(pipe, **given)
    with cf.accelerate(pipe, **dict(options)):
        got = call(pipe, **given)
    return torch.equal(got, want) if limit == 0 else relative(got, want) < limit


@pytest.mark.parametrize("options", [{}, {"record": True}, {"max_rows": 1}])
def test_no_adapter_loaded_is_the_plain_pipeline_bit_for_bit(options):
    assert same(helpers.pipeline("sd", "one_layer"), 0, options)


@pytest.mark.parametrize("method", [None, "merge", "switch", "composite", cf.CMLoRA()])
def test_no_active_adapter_is_the_plain_pipeline_bit_for_bit(method):
    pipe = three("dummy")
    pipe.disable_lora()
    interval = dict(cache_interval=1) if isinstance(method, cf.CMLoRA) else None
    method = cf.CMLoRA(**interval) if interval else method
    assert same(pipe, 0, {"method": method})
    pipe.enable_lora()
    assert same(pipe)


@pytest.mark.parametrize("method", [None, "merge", "switch", "composite"])
def test_all_weights_zero_is_the_plain_pipeline_bit_for_bit(method):
    pipe = three("dummy")
    pipe.disable_lora()
    plain = call(pipe, num_inference_steps=3)
    pipe.enable_lora()
    pipe.set_adapters(["character_1", "style_1"], [0.0, 0.0])
    with cf.accelerate(pipe, method):
        assert torch.equal(call(pipe, num_inference_steps=3), plain)


def test_weight_zero_does_not_take_part():
    pipe = three("dummy")
    pipe.set_adapters(["character_1", "style_1", "background_1"], [1.0, 0.0, 1.0])
    with cf.accelerate(pipe, "composite"):
        got = call(pipe, num_inference_steps=3)
        assert list(cf.summary(pipe).adapters) == ["character_1", "background_1"]
        assert cf.summary(pipe).steps[0].weights == pytest.approx(
            {"character_1": 0.5, "background_1": 0.5}
        )
        pipe.set_adapters(["character_1", "background_1"], [1.0, 1.0])
        assert torch.equal(call(pipe, num_inference_steps=3), got)


@pytest.mark.parametrize("name", ["character_1", "background_1"])
def test_one_adapter(name):
    pipe = three()
    pipe.set_adapters(name, 1.3)
    assert same(pipe)


@pytest.mark.parametrize(
    "options", [dict(), dict(weights="fold"), dict(weights="delta")], ids=helpers.label
)
def test_sixteen_adapters(options):
    names = [f"a{i}" for i in range(16)]
    pipe = adapters.add_many(
        helpers.pipeline("sd", "dummy"), names, weights=[0.1 * (i - 5.5) for i in range(16)]
    )
    assert same(pipe, options=options)


WEIGHTS = [
    [0.5, -1.0, 2.0],  # scalars, one negative
    [{"unet": {"down": 0.5}}, 1.0, 1.0],  # one part of one; the rest 1
    [{"unet": {"down": {"block_0": 0.2, "block_1": [0.9, 0.3]}, "mid": 0.4, "up": 0.0}}, 0.5, 1.0],
    [{"unet": {"up": {"block_1": [1.5, 0.5, 0.0]}}}, {"unet": {"mid": 0.0}}, 0.7],  # per layer
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=helpers.label)
def test_adapter_weights(weights):
    """diffusers' nested form knows the blocks with attention: of three pairs down and up here."""
    pipe = helpers.pipeline("sd", "sd15")
    names = ["character_1", "style_1", "background_1"]
    adapters.add_many(pipe, names, adapters.ATTENTION)
    pipe.set_adapters(names, weights)
    assert same(pipe, num_inference_steps=2)


def test_set_adapters_between_calls_needs_no_new_enable():
    pipe, other = three("dummy"), three("dummy")
    cf.enable(pipe)
    for names, weights in [
        (["style_1"], [1.0]),
        (["background_1", "character_1"], [0.4, 0.9]),
        (["character_1", "style_1", "background_1"], [0.1, 0.2, 0.3]),
    ]:
        pipe.set_adapters(names, weights)
        other.set_adapters(names, weights)
        got, want = (call(p, num_inference_steps=2) for p in (pipe, other))
        assert relative(got, want) < RUN
        assert list(cf.summary(pipe).adapters) == names


@pytest.mark.parametrize("weights", ["fold", "delta"])
def test_adapter_changed_in_place_is_noticed(weights):
    """Folds live across calls; a tensor written to in between must not leave a stale one."""
    pipe = three("dummy")
    cf.enable(pipe, weights=weights)
    before = call(pipe, num_inference_steps=2)
    with torch.no_grad():
        for name, tensor in pipe.unet.named_parameters():
            if "lora_B.character_1" in name:
                tensor.mul_(-1.0)
    got = call(pipe, num_inference_steps=2)
    cf.disable(pipe)
    assert relative(got, call(pipe, num_inference_steps=2)) < RUN
    assert relative(before, got) > 1e-3


def test_adapter_loaded_and_deleted_while_enabled():
    pipe = three("dummy")
    cf.enable(pipe)
    call(pipe, num_inference_steps=2)
    adapters.add(pipe, "object_1")
    pipe.delete_adapters(["style_1"])
    pipe.set_adapters(["object_1", "character_1"], [1.0, 0.5])
    got = call(pipe, num_inference_steps=2)
    cf.disable(pipe)
    assert relative(got, call(pipe, num_inference_steps=2)) < RUN


TARGETS = [
    adapters.ATTENTION,
    adapters.FEED_FORWARD,
    adapters.PROJECTIONS,
    adapters.RESNETS,
    adapters.SAMPLERS,
    adapters.BORDERS,
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("pattern", TARGETS)
@torch.no_grad()
def test_each_kind_of_target(pattern, weights):
    pipe = helpers.pipeline("sd", "one_layer")
    adapters.add_many(pipe, ["a", "b"], pattern, weights=[1.0, 0.5], alpha=None)
    inputs = helpers.unet_inputs(pipe)
    want = pipe.unet(**inputs)[0]
    with cf.accelerate(pipe, weights=weights):
        assert relative(pipe.unet(**inputs)[0], want) < 1e-5


def test_text_encoder_adapters_of_two_encoders():
    pipe = helpers.pipeline("sdxl")
    adapters.add_many(pipe, ["a", "b"], text=True, weights=[0.7, 1.2], alpha=adapters.mixed_alphas)
    assert same(pipe, cross_attention_kwargs={"scale": 0.6})


def test_bfloat16():
    pipe = three("dummy").to(torch.bfloat16)
    want = call(pipe, num_inference_steps=3)
    with cf.accelerate(pipe):
        got = call(pipe, num_inference_steps=3)
    assert got.dtype == want.dtype
    assert relative(got, want) < 0.1  # eight bits of mantissa, through three guided steps
