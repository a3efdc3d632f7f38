"""Whole pipelines of the GPU benchmark: ours against diffusers + PEFT, milliseconds per step."""

import time
from collections.abc import Callable, Iterator

import cmlora_fast as cf
import torch

from .gpu_timing import wait
from .models import call_inputs, load_adapters, sd_pipeline, sdxl_pipeline

COUNTS = (1, 2, 3, 5)  # adapters
STEPS = 10
RANK = 32
MODELS = {"SD 1.5 512x512": (sd_pipeline, (320, 640, 1280, 1280), 64),
          "SDXL 1024x1024": (sdxl_pipeline, (320, 640, 1280), 128)}  # fmt: skip
SMALL = {"SD 1.5 small": (sd_pipeline, (32, 32, 32, 32), 8),
         "SDXL small": (sdxl_pipeline, (64, 64, 64), 16)}  # fmt: skip
OURS = {
    "ours lossless": {},
    "ours lossless, delta": {"weights": "delta"},
    "ours Composite": {"method": "composite"},
    "ours CMLoRA offline": {"method": "cmlora"},
    "ours CMLoRA online": {"method": cf.CMLoRA(variant="online")},
}
THEIRS = ("bare UNet batch", "PEFT, one adapter", "PEFT, Composite in turn")


def load(model: str, device: torch.device):
    build, channels, size = {**MODELS, **SMALL}[model]
    pipe = build(channels, torch.bfloat16 if device.type == "cuda" else torch.float32)
    return pipe.to(device), size


def variants(pipe, size: int, count: int, steps: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, run) for ``count`` adapters; a run makes one image of ``steps`` steps."""
    device = pipe.unet.device
    inputs = {
        key: value.to(device) if torch.is_tensor(value) else value
        for key, value in call_inputs(pipe, size, steps).items()
    }
    names = load_adapters(pipe, count, RANK)
    pipe.unet.to(device, pipe.unet.dtype)
    evaluations = _unet_inputs(pipe, inputs, 2 * count)

    def bare() -> None:
        pipe.unet.disable_adapters()
        for _ in range(steps):
            pipe.unet(**evaluations)
        pipe.unet.enable_adapters()

    def one() -> None:
        pipe.unet.set_adapters(names[:1])
        pipe(**inputs)
        pipe.unet.set_adapters(names)

    def in_turn() -> None:
        """What the released code does at each step: walk to every adapter and run it alone."""
        alone = _unet_inputs(pipe, inputs, 2)
        for _ in range(steps):
            torch.stack([_alone(pipe, name, alone) for name in names]).mean(0)
        pipe.unet.set_adapters(names)

    yield from zip(THEIRS, (bare, one, in_turn), strict=True)
    for name, arguments in OURS.items():
        yield name, _enabled(pipe, inputs, arguments)


def _alone(pipe, name: str, arguments: dict) -> torch.Tensor:
    pipe.unet.set_adapters([name])
    return pipe.unet(**arguments)[0]


def _enabled(pipe, inputs: dict, arguments: dict) -> Callable[[], object]:
    def run() -> None:
        with cf.accelerate(pipe, **arguments):
            pipe(**inputs)

    return run


def _unet_inputs(pipe, inputs: dict, rows: int) -> dict:
    text = inputs["prompt_embeds"]
    arguments = {
        "sample": inputs["latents"].repeat(rows, 1, 1, 1),
        "timestep": torch.tensor(500, device=text.device),
        "encoder_hidden_states": text.repeat(rows, 1, 1),
        "return_dict": False,
    }
    if "pooled_prompt_embeds" in inputs:
        pooled = inputs["pooled_prompt_embeds"].repeat(rows, 1)
        arguments["added_cond_kwargs"] = {
            "text_embeds": pooled,
            "time_ids": pooled.new_zeros(rows, 6),
        }
    return arguments


@torch.inference_mode()
def measure(run: Callable[[], object], device: torch.device, steps: int, repeats: int) -> dict:
    """Milliseconds per step of the fastest of ``repeats`` runs after a warm-up, and peak memory."""
    run()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        wait(device)
        times.append(1e3 * (time.perf_counter() - start) / steps)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"ms_per_step": min(times), "peak_bytes": peak}
