"""Which images ``adapter_names`` tells apart where counting them is less than plain."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters
from ..support.helpers import call, relative
from ..support.loops import one_image, random_inputs
from ..support.per_image import RUN, active, alone, together
from ..support.pix2pix import edit, pix2pix
from ..support.three import SCALES, B, C, S

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def fresh(scales=SCALES, **options):
    given = [*scales.values()]
    return adapters.fresh([*scales], adapters.EVERYTHING, weights=given, **options)


def test_guidance_in_three_parts():
    pipe, names = pix2pix(), ["character_1", "style_1"]
    got, summary = together(pipe, None, [names[1:]], lambda: edit(pipe))
    with active(pipe, names[1:], dict.fromkeys(names, 1.0)):
        want = edit(pipe)
    assert relative(got, want) < RUN
    assert {step.full_rows for step in summary.steps} == {3}
    for entries in ([names, names], [names] * 3):
        with cf.accelerate(pipe, adapter_names=entries), pytest.raises(ValueError, match="entry"):
            edit(pipe)


def test_a_loop_of_ones_own_without_guidance():
    pipe, inputs = fresh(), random_inputs(fresh(), images=2)
    latents, words = inputs["latents"], inputs["prompt_embeds"]
    pipe.scheduler.set_timesteps(3)
    time = pipe.scheduler.timesteps[0]

    def predict(rows=slice(None)):
        pipe.scheduler.set_timesteps(3)
        with torch.no_grad():
            return pipe.unet(latents[rows], time, encoder_hidden_states=words[rows]).sample

    got, _ = together(pipe, None, [C, [S, B]], predict)
    for image, entry in enumerate([C, [S, B]]):
        with active(pipe, entry, SCALES):
            want = predict(slice(image, image + 1))
        assert relative(got[image : image + 1], want) < 1e-5


def test_images_that_a_callback_drops_are_missed():
    """Which images are left cannot be told: the call ends, and the next one is right."""
    pipe = fresh()
    inputs = random_inputs(pipe, images=2, steps=4)

    def drop(pipe, i, t, given):
        kept = torch.cat([half[1:] for half in given["prompt_embeds"].chunk(2)])
        return {"latents": given["latents"][1:], "prompt_embeds": kept} if i == 1 else {}

    watched = dict(
        callback_on_step_end=drop, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    with cf.accelerate(pipe, adapter_names=[C, S]):
        with pytest.raises(ValueError, match="adapter_names: expected 2 images"):
            pipe(**inputs, output_type="latent", **watched)
        got = pipe(**inputs, output_type="latent").images
    want, _ = alone(
        pipe, None, S, SCALES, lambda: pipe(**one_image(inputs, 1), output_type="latent").images
    )
    assert relative(got[1:], want) < RUN


def test_a_switch_encodes_past_adapters_of_weight_0():
    pipe, method = fresh({**SCALES, S: 0.0}, text=True), cf.Switch(switch_step=1)
    given = dict(num_inference_steps=3, negative_prompt="blurry")
    same = [torch.Generator().manual_seed(0) for _ in range(2)]

    def both():
        words = dict(prompt=["a fox"] * 2, negative_prompt=["blurry"] * 2)
        return call(pipe, generator=same, num_inference_steps=3, **words)

    got, _ = together(pipe, method, [[S, B], [C]], both)
    scales = {**SCALES, S: 0.0}
    want, _ = alone(pipe, method, [S, B], scales, lambda: call(pipe, prompt="a fox", **given))
    assert relative(got[:1], want) < RUN
