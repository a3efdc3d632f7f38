"""Weights that are elsewhere, packed, cast around each call, or written to behind our back."""

import cmlora_fast as cf
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from ..support import adapters
from ..support.helpers import call, relative

RUN = 1e-4
STEPS = 4
METHODS = [None, cf.Composite(), cf.CMLoRA(cache_interval=1), cf.Switch(switch_step=2)]
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING, weights=[0.8, 0.6])


def image(pipe, method):
    cf.enable(pipe, method)
    made = call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    return made


class Packed(torch.Tensor):
    """Its numbers are at hand only through the operations that it knows."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.packed = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        known = ("aten::detach", "aten::t", "aten::linear", "aten::addmm", "aten::mm")
        known += ("aten::alias", "aten::view", "aten::_to_copy")
        if func._schema.name not in known:
            raise NotImplementedError(f"Packed: {func._schema.name}")
        unpacked = torch.utils._pytree.tree_map(
            lambda value: value.packed if isinstance(value, cls) else value, (args, kwargs or {})
        )
        out = func(*unpacked[0], **unpacked[1])
        return cls(out) if func._schema.name in ("aten::detach", "aten::t", "aten::alias") else out


def packed(pipe, where):
    for name, module in pipe.unet.named_modules():
        if type(module) is nn.Linear and ".lora_" not in name and where in name:
            packed = nn.Parameter(Packed(module.weight.detach()), requires_grad=False)
            module._parameters["weight"] = packed


@pytest.mark.parametrize("where", ["", "base_layer", "time_emb"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_packed_weights(pipe, method, where):
    """The numbers are the same, so that the image is that of the plain ones."""
    want = image(pipe, method)
    packed(pipe, where)
    assert relative(image(pipe, method), want) < RUN


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_sequential_offload(pipe, method):
    want = image(pipe, method)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    assert relative(image(pipe, method), want) < RUN
    cf.enable(pipe, method)
    call(pipe, num_inference_steps=STEPS)
    assert cf.summary(pipe).weights["mode"] == "peft"
    assert "run through PEFT" in cf.summary(pipe).weights["reason"]


def test_offloading_while_enabled(pipe):
    want = call(pipe, num_inference_steps=STEPS)
    cf.enable(pipe)
    call(pipe, num_inference_steps=STEPS)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    for _ in range(2):
        assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
        cf.disable(pipe)
        assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
        cf.enable(pipe)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_layerwise_casting(pipe, method):
    """Numbers rest in 8 bits: what counts is diffusers' image with them."""
    pipe.unet.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    want = call(pipe, num_inference_steps=STEPS)
    got = image(pipe, method)
    if method is None:
        assert relative(got, want) < RUN
    assert torch.isfinite(got).all()
    assert torch.equal(call(pipe, num_inference_steps=STEPS), want)


PLACES = ["to_q.base_layer", "to_q.lora_A.style_1", "to_k.lora_B.character_1", "to_out.0"]


@pytest.mark.parametrize("method", [None, cf.Composite()], ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["forward", "offload"])
def test_a_hand_in_an_adapted_layer(pipe, place, kind, method):
    """On its base, on a factor or on PEFT's layer itself."""
    before, module = image(pipe, method), pipe.unet.get_submodule(f"{ATTENTION}.{place}")
    if kind == "forward":
        own = module.forward
        module.forward = lambda *args, **kwargs: own(*args, **kwargs) * 1.5
    else:
        hook = AlignDevicesHook(execution_device=torch.device("cpu"), io_same_device=True)
        add_hook_to_module(module, hook)
    want, got = call(pipe, num_inference_steps=STEPS), image(pipe, method)
    if kind == "offload":
        assert relative(got, before) < RUN
    elif method is None:
        assert relative(got, want) < RUN
    if kind != "offload":
        assert relative(got, before) > RUN


def merge(tensor):
    tensor.data += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))


def ema(tensor):
    tensor.data.copy_(0.9 * tensor.data)


def swap(tensor):
    tensor.data = tensor.data * 1.1


@pytest.mark.parametrize("write", [merge, ema, swap])
@pytest.mark.parametrize("layers", ["base_layer", "resnets", "lora_A.style_1", "conv_in", ""])
@pytest.mark.parametrize("method", [None, cf.Composite(), cf.Merge(cache_interval=2)], ids=str)
def test_writes_through_data_are_seen(pipe, write, layers, method):
    cf.enable(pipe, method)
    before = call(pipe, num_inference_steps=STEPS)
    for name, parameter in pipe.unet.named_parameters():
        if layers in name and parameter.dim() > 1:
            write(parameter)
    got = call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    assert relative(got, before) > RUN
    assert relative(got, image(pipe, method)) < 1e-6
