"""The recorded runs of the released CLoRA through ``cf.enable`` and an unchanged pipeline call."""

import cmlora_fast as cf
import numpy as np
import pytest
import torch

from ..support import traces
from ..support.clora_traces import NAMES, load, method_of
from ..support.loops import run_pipeline

LATENTS = 5e-3  # relative; a mask pixel on the edge of its threshold may flip on other machines
VALUES = 1e-4  # losses and maps


def run(name):
    spec, recorded = load(name)
    adapters = [lora for lora in [*spec["loras"], spec["style_lora"]] if lora]
    pipe = traces.pipeline(adapters, spec["scheduler"])
    method = method_of(spec)
    fields = {f: getattr(method, f) for f in method.__dataclass_fields__}
    fields.update(
        row_prompt_embeds=recorded["row_embeds"],
        row_negative_prompt_embeds=recorded["negative_embed"],
    )
    cf.enable(pipe, method=cf.CLoRA(**fields), record=True)
    given = dict(
        prompt_embeds=recorded["row_embeds"][:1],
        negative_prompt_embeds=recorded["negative_embed"],
        latents=recorded["initial_latents"],
        num_inference_steps=spec["steps"],
        guidance_scale=spec["guidance_scale"],
    )
    return spec, recorded, pipe, run_pipeline(pipe, given)


@pytest.mark.parametrize("name", NAMES)
def test_engine_reproduces_the_recorded_run(name):
    _, recorded, pipe, latents = run(name)
    summary = cf.summary(pipe)
    losses = [loss for step in summary.steps for loss in step.loss]
    np.testing.assert_allclose(losses, recorded["losses"].numpy(), atol=VALUES)
    assert (summary.maps - recorded["maps"]).abs().max() < VALUES
    assert torch.equal(summary.masks, recorded["masks"].float())
    assert traces.worst(latents, recorded["latents"]) < LATENTS


def test_records_name_losses_areas_and_weights():
    _, _, pipe, _ = run("clora2_style")
    steps = cf.summary(pipe).steps
    assert [len(step.loss) for step in steps] == [3, 1, 1, 0, 0, 0]  # 1 + 2 at step 0, 3 updates
    for step in steps:
        assert set(step.weights) == {"__base__", "character_1", "clothing_1"}
        assert sum(step.weights.values()) == pytest.approx(1)
        assert all(0 <= area <= 1 for area in step.mask_area.values())
        assert (step.full_rows, step.shallow_rows, step.dominant) == (6, 0, None)
    cf.disable(pipe)
    assert not any(
        "processor" in vars(m) and "Tap" in repr(m.processor) for m in pipe.unet.modules()
    )
