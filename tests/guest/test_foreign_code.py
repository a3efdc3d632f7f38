"""Hooks, forwards and classes that others put on a UNet: none of them is ever left out."""

import cmlora_fast as cf
import diffusers
import pytest
import torch
from torch import nn

from ..support import adapters
from ..support.helpers import call, relative

RUN = 1e-4
STEPS = 3
PARTS = [
    "conv_in",
    "time_embedding",
    "down_blocks.0",
    "down_blocks.1.resnets.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block",
    "up_blocks.0",
    "up_blocks.1",
    "conv_norm_out",
]
BLOCKS = ["down_blocks.0", "up_blocks.0", "up_blocks.1"]
METHODS = [None, cf.Composite(), cf.CMLoRA(), cf.Merge(cache_interval=3)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING)


def changed(out):
    """What no norm behind it undoes."""
    return tuple(map(changed, out)) if isinstance(out, tuple) else out + 0.2 * out.flip(1)


WAYS = [(part, kind) for part in PARTS for kind in ("hook", "forward")]
WAYS += [(PARTS[place], "pre_hook") for place in (0, 3, 4)]  # blocks get arguments by name


@pytest.mark.parametrize("part, kind", WAYS)
def test_what_changes_a_part_changes_the_image(pipe, part, kind):
    plain, module = call(pipe, num_inference_steps=STEPS), pipe.unet.get_submodule(part)
    if kind == "hook":
        module.register_forward_hook(lambda module, args, out: changed(out))
    elif kind == "pre_hook":
        module.register_forward_pre_hook(lambda module, args: (changed(args[0]), *args[1:]))
    else:
        own = module.forward
        module.forward = lambda *args, **kwargs: changed(own(*args, **kwargs))
    want = call(pipe, num_inference_steps=STEPS)
    assert relative(want, plain) > 10 * RUN
    cf.enable(pipe)
    assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
    bypassed = part in BLOCKS or kind == "forward"
    assert (part in cf.summary(pipe).cache["reason"]) == bypassed
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=STEPS), want)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("part", ["down_blocks.0", "up_blocks.1"])
def test_a_hook_sees_the_pipelines_batch_at_every_step(pipe, method, part):
    """And the image is that of the method without reuse, whose parts run one by one."""
    alone = {"cache_interval": 1} if method is not None and method.cache_interval != 1 else None
    cf.enable(pipe, method if alone is None else type(method)(**alone))
    want, seen = call(pipe, num_inference_steps=STEPS), []
    module = pipe.unet.get_submodule(part)
    module.register_forward_hook(lambda module, args, out: seen.append(out), always_call=True)
    cf.enable(pipe, method)
    got = call(pipe, num_inference_steps=STEPS)
    assert relative(got, want) < RUN
    batches = {(out[0] if isinstance(out, tuple) else out).shape[0] for out in seen}
    rows = sum(step.full_rows for step in cf.summary(pipe).steps)
    assert batches == {2}
    assert len(seen) == rows // 2


def test_hooks_on_all_modules_change_nothing(pipe):
    """Profilers count by them."""
    want, names = call(pipe, num_inference_steps=STEPS), set()
    cf.enable(pipe, cf.Merge(cache_interval=2))
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, out: names.add(type(m)))
    try:
        call(pipe, num_inference_steps=STEPS)
        assert cf.summary(pipe).cache["used"] and nn.Conv2d not in names  # folded
        cf.enable(pipe)
        assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
    finally:
        handle.remove()


def wrapped(unet):
    own = unet.forward

    def forward(sample, timestep, encoder_hidden_states, **kwargs):
        out = own(sample, timestep, encoder_hidden_states, **{**kwargs, "return_dict": False})
        return (out[0] * 1.2,)

    unet.forward = forward


@pytest.mark.parametrize("method", [None, cf.Composite()], ids=str)
def test_a_wrapped_forward_of_the_unet_is_called(pipe, method):
    cf.enable(pipe, method)
    call(pipe, num_inference_steps=STEPS)
    wrapped(pipe.unet)  # over ours
    above = call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    cf.enable(pipe, method)  # beneath ours
    below = call(pipe, num_inference_steps=STEPS)
    assert relative(below, above) < RUN
    if method is None:
        cf.disable(pipe)
        assert relative(below, call(pipe, num_inference_steps=STEPS)) < RUN


class Louder(diffusers.UNet2DConditionModel):
    def forward(self, *args, **kwargs):
        return (super().forward(*args, **{**kwargs, "return_dict": False})[0] * 1.2,)


@pytest.mark.parametrize("method", [None, cf.CMLoRA()], ids=str)
def test_a_forward_of_a_subclass_is_called(pipe, method):
    cf.enable(pipe, method if method is None else cf.CMLoRA(cache_interval=1))
    plain = call(pipe, num_inference_steps=STEPS)
    pipe.unet.__class__ = Louder
    cf.enable(pipe, method)
    assert relative(call(pipe, num_inference_steps=STEPS), plain) > 10 * RUN
    assert "Louder" in cf.summary(pipe).cache["reason"]


def test_who_takes_a_hook_off_gets_the_cache_back(pipe):
    cf.enable(pipe, cf.Merge(cache_interval=2))
    handle = pipe.unet.up_blocks[0].register_forward_hook(lambda module, args, out: None)
    call(pipe, num_inference_steps=STEPS)
    assert not cf.summary(pipe).cache["used"]
    handle.remove()
    call(pipe, num_inference_steps=STEPS)
    assert cf.summary(pipe).cache["used"]


def keeping(module):
    """As step caches do: the second call answers what the first one computed."""
    own, kept = module.forward, []

    def forward(*args, **kwargs):
        if not kept:
            kept.append(own(*args, **kwargs))
            return kept[0]
        return kept.pop()

    forward.__module__ = "DeepCache.extension"
    module.forward = forward


def test_features_that_others_keep(pipe):
    """One prediction per step: theirs. Several would share them: refused."""
    keeping(pipe.unet.mid_block)
    keeping(pipe.unet.up_blocks[0])
    want = call(pipe, num_inference_steps=4)
    cf.enable(pipe)
    assert relative(call(pipe, num_inference_steps=4), want) < RUN
    cf.enable(pipe, "composite")
    with pytest.raises(ValueError, match="DeepCache keeps features"):
        call(pipe, num_inference_steps=4)
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=4), want)


class Twice(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, x):
        return 2 * self.own(x)


def test_an_exchanged_class_or_module_is_seen_by_an_enabled_pipeline(pipe):
    """Patchers exchange ``__class__`` (token merging) or the module itself."""
    cf.enable(pipe)
    call(pipe, num_inference_steps=STEPS)
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]

    class Patched(type(block)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * 1.1

    block.__class__ = Patched
    pipe.unet.conv_out = Twice(pipe.unet.conv_out)
    got = call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    assert relative(got, call(pipe, num_inference_steps=STEPS)) < RUN


def unpatched(module, saved):
    """As patchers do: what was found is put back, whatever has come over it since."""
    if saved is None:
        vars(module).pop("forward", None)
    else:
        module.forward = saved


@pytest.mark.parametrize("part", ["", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"])
@pytest.mark.parametrize("first", ["patch", "enable", "enable, patch, enable again"])
def test_a_patch_that_is_taken_back_under_an_enabled_pipeline(pipe, part, first):
    """It takes our hooks with it, or puts old ones back: the pipeline stays enabled."""
    cf.enable(pipe, "composite")
    composed = call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    plain, module = call(pipe, num_inference_steps=STEPS), pipe.unet.get_submodule(part)
    before = {name: set(vars(m)) for name, m in pipe.unet.named_modules()}
    if first != "patch":
        cf.enable(pipe, "composite")
        call(pipe, num_inference_steps=STEPS)
    saved, own = vars(module).get("forward"), module.forward
    module.forward = lambda *args, **kwargs: own(*args, **kwargs)
    if "again" in first:
        cf.disable(pipe)
    cf.enable(pipe, "composite")
    assert relative(call(pipe, num_inference_steps=STEPS), composed) < RUN
    unpatched(module, saved)
    assert relative(call(pipe, num_inference_steps=STEPS), composed) < RUN
    assert len(cf.summary(pipe).steps) == STEPS
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=STEPS), plain)
    assert {name: set(vars(m)) for name, m in pipe.unet.named_modules()} == before


def test_an_old_hook_put_back_after_disable_goes_at_the_first_call(pipe):
    want = call(pipe, num_inference_steps=STEPS)
    cf.enable(pipe)
    call(pipe, num_inference_steps=STEPS)
    saved = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: saved(*args, **kwargs)
    cf.disable(pipe)
    pipe.unet.forward = saved
    assert torch.equal(call(pipe, num_inference_steps=STEPS), want)
    assert "forward" not in vars(pipe.unet)
