"""What others have put on a UNet: hooks, forwards of their own, blocks of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import nn

from .patches import Hook, runs_own_forward

__all__ = [
    "Foreign",
    "foreign_code",
    "is_heard",
    "keeps_features",
    "runs_as_peft_left_it",
]

# In the names of code that takes what a module computed at one call for another.
KEEPING = ("cache", "broadcast")


def is_heard(layer: nn.Module) -> bool:
    """Whether somebody's hook sees its calls."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def runs_as_peft_left_it(layer: nn.Module) -> bool:
    """Whether the numbers in a PEFT layer say what it computes, no forward of somebody else's.

    Hooks on its base and factors, which count calls, hear none while these run as one weight.
    """
    return all(map(runs_own_forward, layer.modules()))


@dataclass(frozen=True)
class Foreign:
    """Why a UNet runs as a whole, by its own forward and those of its blocks.

    ``reads_batch``: what others have put there may take the batch for the pipeline's.
    """

    reason: str
    reads_batch: bool


def foreign_code(unet: nn.Module) -> Foreign | None:
    """What would be left out if the UNet's parts were run one by one; None: nothing.

    A hook of the UNet itself is not: it sees the call, whatever the UNet runs beneath it. Those of
    the middle block and of modules within blocks see their modules' calls, as do hooks on all
    modules of torch, by which profilers count.
    """
    for module in (unet, *unet.down_blocks, *unet.up_blocks):
        if not type(module).__module__.startswith("diffusers."):
            return Foreign(f"a class of its own, {type(module).__name__}", reads_batch=True)
    blocks = {*unet.down_blocks, *unet.up_blocks}
    moved = None
    for name, module in unet.named_modules():
        if module in blocks and is_heard(module):
            return Foreign(f"hooks on {name}", reads_batch=True)
        if runs_own_forward(module) if name else _runs_own_forward(unet):
            continue
        if not hasattr(module, "_hf_hook"):
            place = f" on {name}" if name else ""
            return Foreign(f"a forward of somebody else{place}", reads_batch=True)
        moved = moved or Foreign(f"weights that accelerate moves ({name})", reads_batch=False)
    return moved


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
