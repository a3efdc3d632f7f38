"""How often a step reads each base weight and calls each base layer."""

from collections import Counter

import cmlora_fast as cf
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .helpers import call

STEPS = 8


def base_layers(pipe) -> dict[str, torch.nn.Module]:
    kinds = torch.nn.Linear | torch.nn.Conv2d
    return {
        name: module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, kinds) and ".lora_" not in name and not hasattr(module, "base_layer")
    }


PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "matmul", "einsum"}
PRODUCTS |= {"_linear_pointwise"}  # oneDNN's


class Uses(TorchDispatchMode):
    """How often a matrix product or convolution reads each base weight, step by step."""

    def __init__(self, layers: dict[str, torch.nn.Module]):
        super().__init__()
        self.owner = {m.weight.untyped_storage().data_ptr(): name for name, m in layers.items()}
        self.steps = [Counter()]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                    name = self.owner.get(leaf.untyped_storage().data_ptr())
                    self.steps[-1].update([name] if name else [])
        return func(*args, **(kwargs or {}))


def count(pipe, method, options, steps=STEPS):
    """Uses of each base weight, and calls of each base module, per step."""
    layers = base_layers(pipe)
    calls, handles = [Counter()], []
    for name, module in layers.items():
        hook = lambda module, inputs, name=name: calls[-1].update([name])  # noqa: E731
        handles.append(module.register_forward_pre_hook(hook))

    def next_step(pipe, i, t, tensors):
        calls.append(Counter())
        uses.steps.append(Counter())
        return {}

    try:
        with cf.accelerate(pipe, method, **options), Uses(layers) as uses:
            call(pipe, num_inference_steps=steps, callback_on_step_end=next_step)
    finally:
        for handle in handles:
            handle.remove()
    return uses.steps[:steps], calls[:steps]
