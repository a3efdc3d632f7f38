"""The hooks at a pipeline's border: its UNet, its ControlNet, its scheduler and encode_prompt."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks import Hook, Patches, runs_own_forward

__all__ = ["Border", "unet_of"]


class Border:
    """Calls ``owner`` where a pipeline starts a call, runs its UNet and steps its scheduler.

    ``owner`` has ``encode(encode)``, ``new_schedule()``, ``control_call(call)``,
    ``unet_call(plain, args, kwargs)``, ``take_correction()`` and ``after_step(latents)``.
    Every hook is an instance attribute and keeps the signature of what it shadows: pipelines ask
    for it to find out whether a scheduler takes ``eta`` and ``generator``.
    """

    def __init__(self, pipe: Any, owner: Any):
        self._pipe = weakref.ref(pipe)
        self._owner = owner
        self._patches, self._scheduler_patches = Patches(), Patches()
        self.unet: Any = None
        self._kind: type | None = None  # of the UNet: patchers exchange classes
        self.scheduler: Any = None

    @property
    def pipe(self) -> Any:
        return self._pipe()

    def follows(self) -> bool:
        """Whether the pipeline's UNet is the one that is hooked, what it was, and hooked still."""
        if unet_of(self.pipe) is not self.unet or type(self.unet) is not self._kind:
            return False
        own = vars(self.unet).get("forward")  # patchers put back what they found
        return own is not None and not (isinstance(own, Hook) and own.gone)

    def attach(self) -> None:
        """Hook the pipeline, its UNet and its scheduler as they are."""
        pipe, unet = self.pipe, unet_of(self.pipe)
        name = _forward_of(unet)
        forward = getattr(unet, name)
        other = getattr(forward, "border", None)
        if other is not None and other.pipe is not None and not forward.gone:
            raise RuntimeError(
                "pipe: its UNet is enabled through another pipeline that shares it; "
                "call disable on that one first"
            )
        self.unet, self._kind = unet, type(unet)
        # What torch.compile makes of the UNet from outside stops here: runs are not traced.
        hook = _shadow(forward, torch.compiler.disable(self._unet_forward))
        hook.border = self
        self._patches.set(unet, name, hook)
        for name in ("encode_prompt", "_encode_prompt"):  # older pipelines have the second alone
            if hasattr(pipe, name):
                hook = _shadow(getattr(pipe, name), self._encode_prompt)
                self._patches.set(pipe, name, hook)
                break
        control = getattr(pipe, "controlnet", None)
        if control is not None and runs_own_forward(control):  # another's is always run
            name = _forward_of(control)
            self._patches.set(control, name, _shadow(getattr(control, name), self._control_forward))
        self.follow_scheduler()

    def detach(self) -> None:
        """Leave everything as it was found."""
        self.unet = self.scheduler = None
        self._scheduler_patches.restore()
        self._patches.restore()

    def follow_scheduler(self) -> None:
        """Hook the scheduler that the pipeline has by now; let go of the one it had."""
        scheduler = getattr(self.pipe, "scheduler", None)
        if scheduler is self.scheduler:
            return
        self._scheduler_patches.restore()
        self.scheduler = scheduler
        hooks = {"step": self._scheduler_step, "set_timesteps": self._set_timesteps}
        for name, hook in hooks.items():
            if hasattr(scheduler, name):
                hook = _shadow(getattr(scheduler, name), hook)
                self._scheduler_patches.set(scheduler, name, hook)

    def timesteps(self) -> int:
        """T: the pipeline's own count, which img2img shortens, or the scheduler's."""
        steps = getattr(self.pipe, "_num_timesteps", None)
        if steps is None:
            timesteps = getattr(self.scheduler, "timesteps", None)
            steps = 1 if timesteps is None else len(timesteps)
        return max(1, int(steps))

    def place_of(self, timestep: Any) -> int | None:
        """Which UNet call of the schedule has the nearest timestep; None: there is no schedule."""
        timesteps = getattr(self.scheduler, "timesteps", None)
        try:
            values = torch.as_tensor(timesteps).tolist()[-self.timesteps() :]
            now = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        except (TypeError, ValueError, RuntimeError):
            return None
        return min(range(len(values)), key=lambda place: abs(values[place] - now), default=None)

    def order(self) -> int:
        """UNet evaluations per step of the scheduler."""
        return max(1, getattr(self.scheduler, "order", 1))

    def guided(self) -> bool:
        """Whether classifier-free guidance is on by now; a callback may turn it off."""
        return bool(getattr(self.pipe, "do_classifier_free_guidance", True))

    def parts(self) -> int:
        """Guidance parts of a UNet batch."""
        return 2 if self.guided() else 1

    def _unet_forward(self, original: Callable, *args, **kwargs):
        return self._owner.unet_call(original, args, kwargs)

    def _control_forward(self, original: Callable, *args, **kwargs):
        return self._owner.control_call(functools.partial(original, *args, **kwargs))

    def _encode_prompt(self, original: Callable, *args, **kwargs):
        return self._owner.encode(functools.partial(original, *args, **kwargs))

    def _set_timesteps(self, original: Callable, *args, **kwargs):
        self._owner.new_schedule()
        return original(*args, **kwargs)

    def _scheduler_step(self, original: Callable, *args, **kwargs):
        args, kwargs = self._corrected(args, kwargs)
        result = original(*args, **kwargs)
        latents = result[0] if isinstance(result, tuple) else result.prev_sample
        if isinstance(latents, Tensor):
            self._owner.after_step(latents)
        return result

    def _corrected(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments with the owner's correction added to ``sample``, the third of them."""
        correction = self._owner.take_correction()
        if correction is None:
            return args, kwargs
        if "sample" in kwargs:
            return args, {**kwargs, "sample": kwargs["sample"] + correction}
        return (*args[:2], args[2] + correction, *args[3:]), kwargs


def unet_of(pipe: Any) -> Any:
    """The pipeline's UNet; of one that torch.compile wraps, what it wraps."""
    return getattr(pipe.unet, "_orig_mod", pipe.unet)


def _forward_of(model: nn.Module) -> str:
    """Accelerate's offloading moves the weights and calls _old_forward: hooks go beneath it."""
    return "_old_forward" if "_old_forward" in model.__dict__ else "forward"


def _shadow(original: Callable, replacement: Callable) -> Hook:
    """``replacement``, which gets first what it stands for."""

    def run(*args, **kwargs):
        return replacement(hook.original, *args, **kwargs)

    hook = Hook.over(original, run)
    return hook
