"""Whole pipelines of the GPU benchmark: ours against diffusers + PEFT, milliseconds per step."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cmlora_fast as cf
import torch

from ..clora.__main__ import method_of
from ..models import call_inputs, load_adapters, sd_pipeline, sdxl_pipeline
from .profile import count_calls, host_ms
from .timing import wait

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
OURS |= {f"{name}, no graphs": {**given, "graphs": "off"} for name, given in OURS.items()}
THEIRS = ("bare UNet batch", "PEFT, one adapter", "PEFT, Composite in turn")
CONCEPTS, REFINEMENTS = 2, 5
CLORA = ("ours CLoRA", "ours CLoRA, no graphs")
COMPILED = "ours lossless, compiled"
COMPILING = 150.0  # seconds that the compiler may take for a step of SD 1.5; a guess

WARM_UPS = 2  # of ours the second one records the steps that the first one computes
ROW_LIMITS = (None, 16)
IMAGES = (1, 4, 8)  # per call


@dataclass(frozen=True)
class Variant:
    """``run`` makes images; ``enabled``: arguments of ``cf.enable``, None for theirs.

    ``seconds``: What must be left for it, where that is long.
    """

    name: str
    run: Callable[[], object]
    enabled: dict | None = None
    seconds: float = 0.0


def load(model: str, device: torch.device):
    build, channels, size = {**MODELS, **SMALL}[model]
    with device:  # billions of random numbers
        pipe = build(channels, torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # its tables: host
    return pipe.to(device), size


def call_arguments(pipe, size: int, steps: int, images: int = 1) -> dict:
    device = pipe.unet.device
    return {
        key: value.to(device) if torch.is_tensor(value) else value
        for key, value in call_inputs(pipe, size, steps, images).items()
    }


def variants(pipe, size: int, count: int, steps: int) -> Iterator[Variant]:
    """Everything that is compared for ``count`` adapters; a run makes one image."""
    device, inputs = pipe.unet.device, call_arguments(pipe, size, steps)
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

    yield from map(Variant, THEIRS, (bare, one, in_turn))
    for name, arguments in OURS.items():
        yield Variant(name, lambda: pipe(**inputs), arguments)


def throughput(pipe, size: int, steps: int) -> Iterator[tuple[dict, Variant]]:
    """CMLoRA with three adapters: images of a call, and rows of a UNet batch."""
    load_adapters(pipe, 3, RANK)
    pipe.unet.to(pipe.unet.device, pipe.unet.dtype)
    for images in IMAGES:
        inputs = call_arguments(pipe, size, steps, images)
        for max_rows in ROW_LIMITS:
            given = {"method": "cmlora", "max_rows": max_rows}
            run = lambda inputs=inputs: pipe(**inputs)  # noqa: E731
            yield {"images": images, "max_rows": max_rows}, Variant("ours", run, given)


def of_one_model(pipe, size: int, steps: int, compiles: bool) -> Iterator[tuple[dict, Variant]]:
    """CLoRA with and without graphs, and the lossless step by ``torch.compile``."""
    load_adapters(pipe, CONCEPTS, RANK)
    pipe.unet.to(pipe.unet.device, pipe.unet.dtype)
    inputs = call_arguments(pipe, size, steps)
    method = method_of({"concepts": CONCEPTS, "refinements": REFINEMENTS})
    for name, graphs in zip(CLORA, ("auto", "off"), strict=True):
        given = {"method": method, "graphs": graphs}
        yield {"concepts": CONCEPTS}, Variant(name, lambda: pipe(**inputs), given)
    if compiles:
        given = {"graphs": "compile"}
        compiled = Variant(COMPILED, lambda: pipe(**inputs), given, COMPILING)
        yield {"adapters": CONCEPTS}, compiled


def _alone(pipe, name: str, arguments: dict) -> torch.Tensor:
    pipe.unet.set_adapters([name])
    return pipe.unet(**arguments)[0]


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
def measure(pipe, variant: Variant, steps: int, repeats: int) -> dict:
    """Milliseconds per step of the fastest of ``repeats`` runs, peak memory, what the host did."""
    device, ours = pipe.unet.device, variant.enabled is not None
    with cf.accelerate(pipe, **variant.enabled) if ours else contextlib.nullcontext():
        for _ in range(WARM_UPS if ours else 1):
            variant.run()
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        found = {"ms_per_step": min(_ms(variant.run, device) / steps for _ in range(repeats))}
        if device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        if ours:
            found |= host_ms(pipe.unet, variant.run)
            found |= {"graphs": cf.summary(pipe).graphs, "weights": cf.summary(pipe).weights}
            if device.type == "cuda":
                found["host"] = _counted(variant.run, steps)
        return found


def _counted(run: Callable[[], object], steps: int) -> dict:
    try:
        return count_calls(run, steps)
    except Exception as error:  # no CUPTI on this machine
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _ms(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    wait(device)
    return 1e3 * (time.perf_counter() - start)
