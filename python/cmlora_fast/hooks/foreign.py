"""What others have put on a UNet: hooks, forwards of their own, blocks of their own."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.modules import module as torch_module

from .patches import Hook, runs_own_forward

__all__ = ["foreign_code", "hears_everything", "is_heard", "keeps_features", "runs_as_peft_left_it"]

# In the names of code that takes what a module computed at one call for another.
KEEPING = ("cache", "broadcast")


def is_heard(layer: nn.Module) -> bool:
    """Whether somebody's hook sees its calls."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def runs_as_peft_left_it(layer: nn.Module) -> bool:
    """Whether nothing but the numbers in a PEFT layer says what it computes."""
    modules = [m for m in layer.modules() if m is not layer or not runs_own_forward(m)]
    return not any(is_heard(m) or not runs_own_forward(m) for m in modules)


def hears_everything() -> bool:
    """Whether somebody's hook sees the calls of all modules."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def foreign_code(unet: nn.Module) -> str | None:
    """What would be left out, or meet rows where it expects the pipeline's batch, if the UNet's
    parts were run one by one; None: nothing.

    A hook of the UNet itself is not: it sees the call, whatever the UNet runs beneath it.
    """
    if hears_everything():
        return "hooks on all modules of torch"
    for module in (unet, *unet.down_blocks, *unet.up_blocks):
        if not type(module).__module__.startswith("diffusers."):
            return f"a class of its own, {type(module).__name__}"
    for name, module in unet.named_modules():
        if name and is_heard(module):
            return f"hooks on {name}"
        if name and hasattr(module, "_hf_hook"):
            return f"weights that accelerate moves ({name})"
        if not (runs_own_forward(module) if name else _runs_own_forward(unet)):
            return f"a forward of somebody else{' on ' + name if name else ''}"
    return None


def _runs_own_forward(unet: nn.Module) -> bool:
    """The same of the UNet, whatever accelerate, or somebody else, has put over our hook."""
    for name in ("_old_forward", "forward"):
        forward = unet.__dict__.get(name)
        while isinstance(forward, Hook) and isinstance(forward.original, Hook):
            forward = forward.original
        if isinstance(forward, Hook):
            forward = forward.original
            own = getattr(forward, "__func__", None) is UNet2DConditionModel.forward
            return own and getattr(forward, "__self__", None) is unet
    return type(unet).forward is UNet2DConditionModel.forward


def keeps_features(unet: nn.Module) -> str | None:
    """Whose code keeps features of one UNet call for another, if anybody's."""
    found = (origin for origin in _origins(unet) if any(k in origin.lower() for k in KEEPING))
    return next(found, None)


def _origins(unet: nn.Module) -> Iterator[str]:
    """Where the code comes from that shadows modules' own."""
    for module in (unet, *unet.down_blocks, *unet.up_blocks):
        forward = module.__dict__.get("forward")
        while isinstance(forward, Hook):
            forward = forward.original
        if forward is not None:
            yield getattr(forward, "__module__", "").partition(".")[0]
    for module in unet.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None:
            yield from registry.hooks
