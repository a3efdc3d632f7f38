"""A few seconds of proof on a tiny random UNet: enable computes, disable restores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import cmlora_fast as cf
from cmlora_fast.eval import EMBEDDED
from cmlora_fast.eval.paint import rows_of

from .errors import one_line
from .pipelines import load_pipeline

__all__ = ["checks", "tiny_pipeline"]

TOLERANCE = 1e-4  # relative, along a guided run in float32: api.md's promise for ten steps
CACHING = cf.CMLoRA(cache_interval=2, cache_block_id=0)  # one layer per block: block 0 only
WIDTH, TOKENS, STEPS, RANK = 16, 4, 8, 2


def checks() -> list[dict[str, Any]]:
    """Every check with its result; a failure is told, never raised."""
    return [
        _check("enable is lossless", _lossless),
        _check("disable restores bit for bit", _restores),
        _check("CMLoRA composes two adapters", _composes),
        _check("the embedded model is installed", _embedded, needed=False),
    ]


def tiny_pipeline() -> StableDiffusionPipeline:
    """A random UNet with two random LoRAs; prompts are embeddings, so it needs no text encoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()
        loras = {name: _random_lora(unet) for name in ("character", "background")}
    pipe = StableDiffusionPipeline(
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for name, weights in loras.items():
        pipe.load_lora_weights(weights, adapter_name=name)
    pipe.set_adapters(list(loras))
    return pipe


def _random_lora(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(RANK, module.in_features)
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, RANK) / 8
    return weights


def _run(pipe: StableDiffusionPipeline) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return pipe(
        prompt_embeds=torch.randn(1, TOKENS, WIDTH, generator=draw),
        negative_prompt_embeds=torch.zeros(1, TOKENS, WIDTH),
        num_inference_steps=STEPS,
        output_type="latent",
        generator=draw,
        height=64,
        width=64,
    ).images


def _lossless() -> tuple[bool, str]:
    pipe = tiny_pipeline()
    plain = _run(pipe)
    with cf.accelerate(pipe):
        ours = _run(pipe)
    worst = ((plain - ours).abs().max() / plain.abs().max()).item()
    return worst < TOLERANCE, f"largest relative difference to diffusers + PEFT {worst:.1e}"


def _restores() -> tuple[bool, str]:
    pipe = tiny_pipeline()
    plain = _run(pipe)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    cf.enable(pipe, method=CACHING)
    _run(pipe)
    cf.disable(pipe)
    after = pipe.unet.state_dict()
    same = after.keys() == weights.keys() and all(
        torch.equal(value, after[name]) for name, value in weights.items()
    )
    equal = same and torch.equal(plain, _run(pipe))
    return equal, "weights and images are the same" if equal else "the pipeline has changed"


def _composes() -> tuple[bool, str]:
    pipe = tiny_pipeline()
    cf.enable(pipe, method=CACHING)
    finite = bool(torch.isfinite(_run(pipe)).all())
    ran = cf.summary(pipe)
    rows = rows_of(ran)
    good = finite and rows["shallow_rows"] > 0 and len(ran.steps) == STEPS
    told = "{full_rows} full and {shallow_rows} shallow rows".format(**rows)
    return good, f"{told} on backend {ran.backend}"


def _embedded() -> tuple[bool, str]:
    from cmlora_fast import testbed

    files = [testbed.lora_path(id, style) for style in testbed.STYLES for id in testbed.IDS]
    missing = [f"{path.parent.name}/{path.stem}" for path in files if not path.is_file()]
    load_pipeline(EMBEDDED, device="cpu")
    text = f"LoRAs missing: {', '.join(missing)}" if missing else f"{len(files)} LoRAs"
    return not missing, text


def _check(name: str, check: Callable[[], tuple[bool, str]], needed: bool = True) -> dict[str, Any]:
    try:
        ok, detail = check()
    except Exception as error:
        ok, detail = False, one_line(error)
    return {"name": name, "ok": ok, "needed": needed, "detail": detail}
