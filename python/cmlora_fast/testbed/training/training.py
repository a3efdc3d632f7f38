"""What the four training scripts share: seeds, learning rate, averages, checkpoints."""

import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from .pools import WORK

_CORES = int(os.environ.get("OMP_NUM_THREADS", 2))
_PACE = 24  # steps between two comparisons of one thread with all threads


def start(name: str) -> Path:
    """The folder for this script's checkpoints; one thread until `Pace` finds two faster."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rank_and_count() -> tuple[int, int]:
    """This process among those that share each batch; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Randomness that depends on step and rank alone, so that a resumed run repeats it."""
    rank, count = rank_and_count()
    return torch.Generator().manual_seed(seed * 1_000_003 + step * count + rank)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 64, 64, 3] to float [B, 3, 64, 64] in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """Exponential moving average of the trained parameters (warm start: short memory first)."""

    def __init__(self, parameters: list[torch.Tensor], decay: float):
        self.decay = decay
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: list[torch.Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: list[torch.Tensor]) -> None:
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.copy_(value)


class Pace:
    """Chooses between one thread and all of them by timing steps.

    On a machine shared with other work two threads can be many times slower than one, because
    each parallel region waits for the thread whose core is taken. So two are tried only while a
    core seems free, and given up as soon as a step takes longer.
    """

    def __init__(self):
        self.threads = 1
        self.cores = _CORES // rank_and_count()[1]
        self.times = {self.cores: math.inf, 1: 0.0}

    def begin(self, step: int) -> None:
        phase = step % _PACE
        if phase == 0 and self.threads > 1:
            self.threads = 1
        elif phase == 1 and os.getloadavg()[0] < self.cores - 0.3:
            self.threads = self.cores
        elif phase > 2:
            self.threads = min(self.times, key=self.times.get)
        torch.set_num_threads(self.threads)
        self.began = time.time()

    def end(self) -> None:
        self.times[self.threads] = time.time() - self.began


class Loop:
    """A resumable loop: `for step in loop` sets the rate, logs and writes checkpoints.

    A checkpoint holds parameters, their average, optimiser and step; a run that starts again goes
    on from the newest one.
    """

    def __init__(self, folder: Path, parameters, *, steps, peak, warmup=100, decay=0.999, save=200):
        self.path = folder / "checkpoint.pt"
        self.parameters, self.steps, self.peak, self.warmup = list(parameters), steps, peak, warmup
        self.save_every = save
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=peak, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.average = Average(self.parameters, decay)
        self.first = 0
        self.silent = rank_and_count()[0] > 0  # one process logs and writes
        self.losses: list[float] = []
        if self.path.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.average.values = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.first = state["step"]

    def _save(self, step: int) -> None:
        state = {
            "parameters": [p.detach() for p in self.parameters],
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step": step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)

    def __iter__(self):
        began, pace = time.time(), Pace()
        for step in range(self.first, self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps, self.peak, self.warmup)
            pace.begin(step)
            yield step
            pace.end()
            if self.silent:
                continue
            if (step + 1) % 50 == 0:
                rate = (time.time() - began) / (step + 1 - self.first)
                mean = sum(self.losses) / len(self.losses)
                self.losses.clear()
                print(
                    f"step {step + 1}/{self.steps} loss {mean:.4f} {rate:.2f} s/step {pace.times}",
                    flush=True,
                )
            if (step + 1) % self.save_every == 0 or step + 1 == self.steps:
                self._save(step + 1)

    def learn(self, loss: torch.Tensor, step: int) -> None:
        """One optimiser step on a scalar loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.average.update(self.parameters, step)
        self.losses.append(loss.item())

    def _share_gradients(self) -> None:
        count = rank_and_count()[1]
        if count > 1:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, mean in zip(
                gradients, (flat / count).split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(mean.view_as(gradient))

    def finish(self) -> None:
        """Leave the averaged parameters in the model."""
        self.average.copy_to(self.parameters)
