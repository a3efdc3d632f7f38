"""From command line words to a pipeline: model, dtype, device, scheduler, adapters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmlora_fast.adapters.file import LoraFile, named_tensors
from cmlora_fast.adapters.fit import apply_alphas, check_fit
from cmlora_fast.eval import EMBEDDED

from .errors import CliError, one_line
from .lora_files import LoraSpec

__all__ = [
    "DTYPES",
    "SCHEDULERS",
    "add_loras",
    "check_scheduler",
    "load_pipeline",
    "pick_device",
    "set_scheduler",
    "text_encoders",
]

# Its layers are too small to share: on two idle cores a second thread gains nothing, and on busy
# ones waiting for it took 80 s per image in place of 0.5.
EMBEDDED_THREADS = 1
DTYPES = ("auto", "float32", "float16", "bfloat16")
CHECKPOINTS = (".safetensors", ".ckpt")
# Name -> diffusers class and what its configuration changes.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),  # of latents
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """A diffusers pipeline whose denoiser is a ``UNet2DConditionModel``, on its device.

    Args:
        model: "embedded", a diffusers directory, a single-file checkpoint or a hub id.
        dtype: One of DTYPES; auto: float16 on a GPU, float32 elsewhere.
        device: "auto", "cpu", "cuda" or "cuda:1" and so on.
    """
    import torch
    from diffusers import UNet2DConditionModel

    if dtype not in DTYPES:
        raise CliError(f"--dtype: expected one of {', '.join(DTYPES)}; got {dtype!r}")
    place = pick_device(device)
    if dtype == "auto":
        dtype = "float16" if place.startswith("cuda") else "float32"
    try:
        pipe = _load(model, getattr(torch, dtype))
    except CliError:
        raise
    except Exception as error:
        raise CliError(f"--model {model}: cannot be loaded: {one_line(error)}") from error
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel):
        raise CliError(
            f"--model {model}: expected a pipeline whose unet is a UNet2DConditionModel; "
            f"got {type(pipe).__name__}"
        )
    if model == EMBEDDED:
        torch.set_num_threads(EMBEDDED_THREADS)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)


def pick_device(device: str) -> str:
    """The device that ``--device`` means here."""
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if has_gpu else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise CliError(f"--device: expected auto, cpu, cuda or cuda:N; got {device!r}")
    if kind == "cuda" and not has_gpu:
        raise CliError(f"--device {device}: torch {torch.__version__} sees no CUDA device here")
    return device


def check_scheduler(name: str | None) -> None:
    """Refuse an unknown name; None is the model's own scheduler."""
    if name is not None and name not in SCHEDULERS:
        raise CliError(f"--scheduler: expected one of {', '.join(SCHEDULERS)}; got {name!r}")


def set_scheduler(pipe: Any, name: str | None) -> None:
    """Exchange the scheduler, keeping the model's noise schedule; None keeps the model's own."""
    if name is None:
        return
    import diffusers

    cls, changes = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)


def add_loras(pipe: Any, specs: Sequence[LoraSpec], files: Sequence[LoraFile]) -> None:
    """Load and activate files that have been checked in themselves; refuses what does not fit."""
    models = {"unet": pipe.unet, **text_encoders(pipe)}
    for file in files:
        check_fit(file, models)
    for spec, file in zip(specs, files, strict=True):
        try:
            tensors, given = named_tensors(file), {"adapter_name": spec.name}
            if tensors is None:
                pipe.load_lora_weights(spec.path.parent, weight_name=spec.path.name, **given)
            else:
                pipe.load_lora_weights(tensors, **given)
        except Exception as error:
            raise CliError(f"{spec.path}: diffusers cannot load it: {one_line(error)}") from error
        apply_alphas(file, models, spec.name)
        if not any(spec.name in getattr(model, "peft_config", {}) for model in models.values()):
            raise CliError(f"{spec.path}: diffusers finds nothing to load in its keys")
    if specs:
        pipe.set_adapters([spec.name for spec in specs], [spec.weight for spec in specs])


def text_encoders(pipe: Any) -> dict[str, Any]:
    """The pipeline's text encoders by component name."""
    names = ("text_encoder", "text_encoder_2")
    return {name: model for name in names if (model := getattr(pipe, name, None)) is not None}


def _load(model: str, dtype: Any) -> Any:
    path = Path(model).expanduser()
    if model == EMBEDDED:
        return _embedded(dtype)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise CliError(
                f"--model {model}: holds no model_index.json; expected a diffusers model"
            )
        return _from_pretrained(path, dtype)
    if path.is_file():
        return _from_single_file(path, dtype)
    looks_local = model.count("/") != 1 or model.startswith((".", "/", "~"))
    if looks_local or path.suffix in CHECKPOINTS:
        raise CliError(
            f"--model {model}: no such file or directory; expected {EMBEDDED!r}, a diffusers "
            "directory, a .safetensors checkpoint or a hub id such as owner/name"
        )
    return _from_pretrained(model, dtype)


def _embedded(dtype: Any) -> Any:
    from cmlora_fast import testbed

    folder = testbed.DATA / "pipeline"
    if not (folder / "model_index.json").is_file():
        raise CliError(f"the embedded model is missing from this installation: no {folder}")
    return testbed.load_pipeline(dtype)


def _from_pretrained(place: str | Path, dtype: Any) -> Any:
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(place, torch_dtype=dtype)


def _from_single_file(path: Path, dtype: Any) -> Any:
    """SD or SDXL, told apart by the second text encoder that only SDXL has."""
    import diffusers

    if path.suffix not in CHECKPOINTS:
        raise CliError(f"--model {path}: expected one of {', '.join(CHECKPOINTS)}")
    is_xl = path.suffix == ".safetensors" and any(
        key.startswith("conditioner.embedders.1.") for key in _keys(path)
    )
    cls = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    return cls.from_single_file(str(path), torch_dtype=dtype)


def _keys(path: Path) -> list[str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return list(json.loads(file.read(min(length, path.stat().st_size))))
