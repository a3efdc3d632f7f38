"""Adapter kinds other than plain LoRA: computed rightly, or refused by name."""

import importlib
import re

import cmlora_fast as cf
import peft
import pytest
import torch
from cmlora_fast.adapters.kinds import KINDS as TABLE
from cmlora_fast.adapters.kinds import kind_of_layer

from ..support import adapters, helpers, loops
from ..support.helpers import call, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TARGETS = ["to_q", "to_v"]

KINDS = [
    ("DoRA", peft.LoraConfig(r=2, target_modules=TARGETS, use_dora=True)),
    ("bias", peft.LoraConfig(r=2, target_modules=TARGETS, lora_bias=True)),
    ("LoHa", peft.LoHaConfig(r=2, target_modules=TARGETS)),
    ("LoKr", peft.LoKrConfig(r=2, target_modules=TARGETS)),
    ("rslora|RSLoRA|rsLoRA", peft.LoraConfig(r=3, target_modules=TARGETS, use_rslora=True)),
]


def randomise(pipe, name):
    draw = torch.Generator().manual_seed(0)
    for key, parameter in pipe.unet.named_parameters():
        if f".{name}" in key:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.05)


def right_or_refused(pipe, method, name):
    """Equal to the plain pipeline, or a ValueError that names the kind; then as before."""
    want = call(pipe, num_inference_steps=2)
    try:
        cf.enable(pipe, method)
        got = call(pipe, num_inference_steps=2)
    except ValueError as refusal:
        assert re.search(f"(?i){name}", str(refusal)), refusal
    else:
        assert relative(got, want) < 1e-4
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=2), want)


@pytest.mark.parametrize(("name", "config"), KINDS, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("method", [None, "composite"])  # one adapter: the same image
def test_kind(name, config, method):
    pipe = helpers.pipeline("sd", "dummy")
    pipe.unet.add_adapter(config, adapter_name="strange")
    pipe.unet.set_adapter("strange")
    plain = call(pipe, num_inference_steps=2)
    randomise(pipe, "strange")
    assert relative(call(pipe, num_inference_steps=2), plain) > 1e-4
    right_or_refused(pipe, method, name)


TOGETHER = {
    "dora": peft.LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "plain": peft.LoraConfig(r=3, target_modules=[*TARGETS, "to_k"]),
    "biased": peft.LoraConfig(r=2, target_modules=["to_q", "proj_in"], lora_bias=True),
}
SHARES = {
    "switch": [{"dora": (1.0, True)}] * 2,  # the next one comes after five steps
    "composite": [dict.fromkeys(TOGETHER, (1 / 3, True))] * 2,
    "cmlora": None,
}


@pytest.mark.parametrize("method", [None, *SHARES])
@pytest.mark.parametrize("weights", ["fold", "delta"])
def test_kinds_together(method, weights):
    """DoRA, plain LoRA and one with bias in one UNet; a method's rows are PEFT's one by one."""
    pipe, scales = helpers.pipeline("sd", "dummy"), {"dora": 0.8, "plain": -0.6, "biased": 1.2}
    for name, config in TOGETHER.items():
        pipe.unet.add_adapter(config, adapter_name=name)
        randomise(pipe, name)
    pipe.set_adapters([*scales], [*scales.values()])
    inputs = loops.random_inputs(pipe, steps=2)
    made = cf.CMLoRA(cache_interval=1) if method == "cmlora" else method
    with cf.accelerate(pipe, made, weights=weights):
        got = loops.run_pipeline(pipe, inputs)
        told = cf.summary(pipe)
    if method is None:
        want = loops.run_pipeline(pipe, inputs)
    else:
        leads = [{n: (w, True) for n, w in step.weights.items()} for step in told.steps]
        predict = loops.composed(pipe, SHARES[method] or leads, scales)
        want = loops.denoise(pipe, predict, inputs)
    assert relative(got, want) < 1e-4
    assert told.weights["mode"] == ("fold" if weights == "fold" else "mixed"), told.weights
    if weights == "delta":
        assert "folded, for they hold DoRA, LoRA with bias" in told.weights["reason"]


@pytest.mark.parametrize("method", [None, "composite"])
def test_fused_weights(method):
    """Fused, the base weight is no longer the base: one adapter or the image of both."""
    pipe = adapters.fresh(["character_1"])
    pipe.fuse_lora()
    right_or_refused(pipe, method, "fuse")


def test_fused_while_enabled():
    """The next call refuses or is right; the fused weights survive ``disable``."""
    pipe, plain = (adapters.fresh(["character_1", "style_1"]) for _ in range(2))
    plain.fuse_lora(adapter_names=["character_1"])
    want = call(plain, num_inference_steps=2)
    cf.enable(pipe)
    call(pipe, num_inference_steps=2)
    pipe.fuse_lora(adapter_names=["character_1"])
    try:
        assert relative(call(pipe, num_inference_steps=2), want) < 1e-4
    except ValueError as refusal:
        assert "fuse" in str(refusal)
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=2), want)


def test_unfused_again():
    pipe = adapters.fresh(["character_1", "style_1"])
    pipe.fuse_lora()
    pipe.unfuse_lora()
    want = call(pipe, num_inference_steps=2)
    with cf.accelerate(pipe):
        assert relative(call(pipe, num_inference_steps=2), want) < 1e-4


def test_strange_but_inactive():
    """A kind that we do not compute is no obstacle while it is not active."""
    pipe = adapters.fresh(["character_1"])
    pipe.unet.add_adapter(KINDS[0][1], adapter_name="strange")
    pipe.set_adapters("character_1")
    want = call(pipe, num_inference_steps=2)
    with cf.accelerate(pipe, "composite"):
        assert relative(call(pipe, num_inference_steps=2), want) < 1e-4


@pytest.mark.parametrize("kind", [kind for kind in TABLE if kind.tuner], ids=lambda kind: kind.name)
def test_one_table_names_files_and_layers(kind):
    layers = importlib.import_module(f"peft.tuners.{kind.tuner}.layer")
    classes = [x for x in vars(layers).values() if getattr(x, "__module__", "") == layers.__name__]
    assert classes and {kind_of_layer(cls) for cls in classes} == {kind.name}
