"""Who is measured: ways to paint one image with the same weights, adapters and noise."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cmlora_fast as cf
from torch import Tensor, nn

from ..models import call_inputs, load_adapters, sd_pipeline
from . import loops

__all__ = ["CONTENDERS", "Contender", "Stage", "available"]

INTERVAL = 3  # of feature caching in DeepCache and in Merge
PAIR = 2  # an unconditional and a conditional row
DEEPCACHE_BRANCH = 2  # reuses exactly what our default cut reuses, so both do equal work


@dataclass(frozen=True)
class Contender:
    """One way to paint an image.

    Args:
        what: For tables and pictures.
        against: Contenders that its time is compared with; its image equals that of the first,
            to rounding, where ``same`` is true.
        uncached: Contender that paints its image without feature caching; "" where it caches none.
        max_rows: Of ours: the rows of a batch.
    """

    what: str
    against: tuple[str, ...] = ()
    same: bool = False
    uncached: str = ""
    max_rows: int | None = None


CONTENDERS = {
    "plain": Contender("no LoRA"),
    "peft": Contender("diffusers + PEFT, all adapters", ("plain",)),
    "peft_one": Contender("diffusers + PEFT, one adapter", ("plain",)),
    "lossless": Contender("cmlora_fast, folded", ("peft", "plain"), same=True),
    "lossless_delta": Contender("cmlora_fast, delta", ("peft", "plain"), same=True),
    "deepcache": Contender(f"DeepCache, interval {INTERVAL}", ("peft",), uncached="peft"),
    "merge": Contender(
        f"cmlora_fast Merge, interval {INTERVAL}", ("deepcache", "peft"), True, uncached="lossless"
    ),
    "forecast": Contender(
        "cmlora_fast Merge, forecast", ("lossless", "deepcache", "peft"), uncached="lossless"
    ),
    "switch": Contender("cmlora_fast Switch", ("peft_one",)),
    "composite_loop": Contender("sequential Composite", ("peft_one",)),
    "composite": Contender("cmlora_fast Composite", ("composite_loop",), True),
    "composite_pairs": Contender(
        "Composite, two rows at a time", ("composite_loop",), True, max_rows=PAIR
    ),
    "composite_relay": Contender(
        "Composite, relay", ("composite", "composite_loop", "peft_one"), uncached="composite"
    ),
    "cmlora_loop": Contender("sequential CMLoRA", ("composite_loop",), uncached="cmlora_uncached"),
    "cmlora": Contender(
        "cmlora_fast CMLoRA",
        ("cmlora_loop", "composite_loop", "peft_one"),
        True,
        uncached="cmlora_uncached",
    ),
    "cmlora_pairs": Contender(
        "CMLoRA, two rows at a time",
        ("cmlora_loop", "composite_loop", "peft_one"),
        True,
        uncached="cmlora_uncached",
        max_rows=PAIR,
    ),
    "cmlora_relay": Contender(
        "CMLoRA, relay", ("composite", "composite_loop", "peft_one"), uncached="cmlora_uncached"
    ),
}
OURS = {
    "lossless": None,
    "lossless_delta": None,
    "merge": cf.Merge(cache_interval=INTERVAL),
    "forecast": cf.Merge(cache="forecast"),
    "switch": cf.Switch(),
    "composite": cf.Composite(),
    "composite_pairs": cf.Composite(),
    "composite_relay": cf.Composite(cache="relay"),
    "cmlora": cf.CMLoRA(),
    "cmlora_pairs": cf.CMLoRA(),
    "cmlora_relay": cf.CMLoRA(cache="relay"),
    "cmlora_uncached": cf.CMLoRA(cache_interval=1),
}


def available(name: str) -> bool:
    """Whether what the contender needs is installed."""
    return name != "deepcache" or importlib.util.find_spec("DeepCache") is not None


class Stage:
    """Pipelines that share every tensor: without LoRA, with PEFT's layers, and two for us.

    Ours stay apart from PEFT's so that nothing of ours is in the baselines' way; folded and
    unfolded weights so that neither is rebuilt between images.
    """

    def __init__(self, channels: tuple[int, ...], size: int, adapters: int, device: str = "cpu"):
        self.plain = sd_pipeline(channels).to(device)
        self.peft = _twin(self.plain)
        self.names = load_adapters(self.peft, adapters)
        self.peft.unet.to(device)
        self.ours, self.delta = _twin(self.peft), _twin(self.peft)
        self.inputs = call_inputs(self.plain, size, steps=1)
        self._helper: Any = None

    def pipe_of(self, name: str):
        """The pipeline that we accelerate for this contender; None for a baseline."""
        if name not in OURS:
            return None
        return self.delta if name == "lossless_delta" else self.ours

    def enter(self, name: str) -> None:
        """Get ready for images of this contender, which is not part of its time."""
        pipe = self.pipe_of(name)
        if pipe is not None:
            weights = "delta" if pipe is self.delta else "fold"
            max_rows = CONTENDERS[name].max_rows if name in CONTENDERS else None
            cf.enable(pipe, OURS[name], weights=weights, max_rows=max_rows)
        elif name == "deepcache":
            from DeepCache import DeepCacheSDHelper

            self._helper = DeepCacheSDHelper(self.peft)
            self._helper.set_params(cache_interval=INTERVAL, cache_branch_id=DEEPCACHE_BRANCH)
            self._helper.enable()
        if name in ("peft", "deepcache"):
            self.peft.unet.set_adapters(self.names)
        elif name == "peft_one":
            self.peft.unet.set_adapters(self.names[0])

    def leave(self, name: str) -> None:
        """Undo ``enter``; folds stay for the next image."""
        if name == "deepcache":
            self._helper.disable()

    def rest(self) -> None:
        """Nothing of ours is left in memory."""
        for pipe in (self.ours, self.delta):
            cf.disable(pipe)

    def paint(self, name: str, steps: int) -> Tensor:
        """Final latents of one image."""
        inputs = {**self.inputs, "num_inference_steps": steps}
        if name in LOOPS:
            return LOOPS[name](self.peft, self.names, inputs)
        pipe = self.pipe_of(name) or (self.plain if name == "plain" else self.peft)
        return pipe(**inputs).images


LOOPS: dict[str, Callable[..., Tensor]] = {
    "composite_loop": loops.composite,
    "cmlora_loop": loops.cmlora,
}


def _twin(pipe):
    """The same pipeline around a UNet of its own modules and the same tensors."""
    tensors: dict[int, nn.Parameter | Tensor] = {}
    for tensor in (*pipe.unet.parameters(), *pipe.unet.buffers()):
        tensors[id(tensor)] = tensor
    twin = copy.copy(pipe)
    twin.unet = copy.deepcopy(pipe.unet, tensors)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin
