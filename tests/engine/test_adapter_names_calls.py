"""``adapter_names`` in whole calls: prompts and text encoders, callbacks, settings, mistakes."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.clora_rows import clora
from ..support.helpers import call, relative
from ..support.loops import one_image, random_inputs, run_pipeline
from ..support.per_image import BASE, RUN, active, alone, together
from ..support.three import SCALES, B, C, S

PROMPTS, NEGATIVES = ["a fox in a green coat", "a bear"], ["blurry", "a hat"]
METHODS = [
    None,
    cf.Switch(switch_step=2, cache_interval=2),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(),
    cf.CMLoRA(variant="online", cache_interval=2, threshold=0.3),
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def fresh(text=False, **options):
    scales = [*SCALES.values()]
    return adapters.fresh([*SCALES], adapters.EVERYTHING, weights=scales, text=text, **options)


def draws(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def compare_words(pipe, method, entries, each=1, **given):
    """Images of several prompts against calls of one prompt and one image."""
    given = {"num_inference_steps": 5, **given}

    def run():
        words = dict(prompt=PROMPTS, negative_prompt=NEGATIVES, num_images_per_prompt=each)
        return call(pipe, generator=draws(2 * each), **words, **given)

    got, summary = together(pipe, method, entries, run)
    for image, entry in enumerate(entries):
        prompt, negative = PROMPTS[image // each], NEGATIVES[image // each]

        def run_one(prompt=prompt, negative=negative, image=image):
            words = dict(prompt=prompt, negative_prompt=negative)
            return call(pipe, generator=draws(2 * each)[image], **words, **given)

        want, _ = alone(pipe, method, entry, SCALES, run_one)
        assert relative(got[image : image + 1], want) < RUN, (image, entry)
    return summary


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_prompts_are_encoded_under_each_images_own_adapters(method, text):
    compare_words(fresh(text), method, [[S, C], [B]])


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text"])
@pytest.mark.parametrize("method", METHODS[:4], ids=helpers.label)
def test_images_of_a_prompt_come_one_after_the_other(method, text):
    """Prompt-major; two images of one prompt may have different adapters, and different texts."""
    summary = compare_words(fresh(text), method, [[C], BASE, [B, S], [C, S, B]], each=2)
    assert all(len(step.per_image) == 4 for step in summary.steps)


def test_text_encoders_without_guidance():
    compare_words(fresh(True), METHODS[2], [[S], BASE], guidance_scale=1.0)


def test_the_text_encoders_matter_and_are_left_as_they_were():
    pipe = fresh(True)
    given = dict(prompt="a fox", num_images_per_prompt=2, generator=draws(2))
    before = pipe.encode_prompt("a fox", "cpu", 1, False)[0]
    got, _ = together(pipe, None, [[C], [S]], lambda: call(pipe, **given, num_inference_steps=2))
    assert torch.equal(pipe.encode_prompt("a fox", "cpu", 1, False)[0], before)
    with active(pipe, [S], SCALES):
        own = pipe.encode_prompt("a fox", "cpu", 1, False)[0]
    assert relative(own, before) > 1e-3 and got.isfinite().all()


@pytest.mark.parametrize("method", [None, METHODS[2]], ids=helpers.label)
def test_sdxl(method):
    pipe = fresh(True, kind="sdxl", shape="sdxl")
    compare_words(pipe, method, [[C, B], BASE], num_inference_steps=3)


@pytest.mark.parametrize("kind", ["img2img", "controlnet"])
def test_other_pipelines(kind):
    compare_words(fresh(kind=kind), METHODS[2], [[C, B], [S]])


def stop_guidance(pipe, i, t, tensors):
    if i == int(pipe.num_timesteps * 0.4):
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return tensors


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_guidance_turned_off_by_a_callback(method):
    """Half of the batch is left; every image goes on with its own adapters."""
    pipe, entries = fresh(), [[C], [S, B], BASE]
    inputs = random_inputs(pipe, images=3, steps=8)
    given = dict(output_type="latent", callback_on_step_end=stop_guidance)
    given["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]

    def paint(own):
        return lambda: pipe(**own, **given).images

    got, summary = together(pipe, method, entries, paint(inputs))
    for image, entry in enumerate(entries):
        want, _ = alone(pipe, method, entry, SCALES, paint(one_image(inputs, image)))
        assert relative(got[image : image + 1], want) < RUN
    rows = [step.full_rows + step.shallow_rows for step in summary.steps]
    assert rows[:4] == [2 * rows[4]] * 4 and rows[4:] == [rows[4]] * 4


def test_accelerate_restores_them():
    pipe = fresh()
    inputs = random_inputs(pipe, images=2, steps=4)
    cf.enable(pipe, "composite", adapter_names=[[C], [S, B]])
    outer = run_pipeline(pipe, inputs)
    with cf.accelerate(pipe, "composite"):
        inner = run_pipeline(pipe, inputs)
        with cf.accelerate(pipe, adapter_names=[S, BASE]):
            run_pipeline(pipe, inputs)
        assert torch.equal(run_pipeline(pipe, inputs), inner)
    assert torch.equal(run_pipeline(pipe, inputs), outer) and not torch.equal(inner, outer)
    cf.enable(pipe, "composite")
    assert torch.equal(run_pipeline(pipe, inputs), inner)
    cf.disable(pipe)


def test_a_list_changed_after_enable_changes_nothing():
    pipe = fresh()
    inputs, entries = random_inputs(pipe, images=2, steps=3), [[C], [S]]
    with cf.accelerate(pipe, adapter_names=entries):
        want = run_pipeline(pipe, inputs)
        entries[0].append(B)
        entries.pop()
        assert torch.equal(run_pipeline(pipe, inputs), want)


def test_adapters_of_later_calls_are_read_then():
    """Weights are those of ``set_adapters`` at the call."""
    pipe = fresh()
    inputs, entries = random_inputs(pipe, images=2, steps=3), [[C], [S]]
    with cf.accelerate(pipe, adapter_names=entries):
        run_pipeline(pipe, inputs)
        pipe.set_adapters([S, C], [0.3, 0.5])
        got = run_pipeline(pipe, inputs)
    scales = {S: 0.3, C: 0.5}
    for image, entry in enumerate(entries):
        own = one_image(inputs, image)
        want, _ = alone(pipe, None, entry, scales, lambda own=own: run_pipeline(pipe, own))
        assert relative(got[:, image : image + 1], want) < RUN


WRONG = [
    [[C]],  # of two images
    [[C], [S], [B]],
    [],
    [[C], ["nobody"]],
    [[C], "nobody"],
    [[C], ["object_1"]],  # loaded, not active
    [[C], [S, S]],
    [[C], [S, BASE]],
    "character_1",
    {"a": [C], "b": [S]},
    5,
    [[C], 5],
    [[C], None],
    [[C], [5]],
    [[C], {S}],
]


@pytest.mark.parametrize("entries", WRONG, ids=str)
@pytest.mark.parametrize("method", [None, "composite"])
def test_what_cannot_be_composed_is_said_before_the_first_step(method, entries):
    pipe, seen = fresh(), []
    adapters.add(pipe, "object_1", adapters.EVERYTHING)
    pipe.set_adapters([*SCALES], [*SCALES.values()])
    inputs = random_inputs(pipe, images=2, steps=2)
    handle = pipe.unet.conv_in.register_forward_pre_hook(lambda *given: seen.append(1))
    with pytest.raises(ValueError, match="adapter_names"):
        cf.enable(pipe, method, adapter_names=entries)
        run_pipeline(pipe, inputs)
    assert not seen
    handle.remove()
    cf.enable(pipe, method)
    got = run_pipeline(pipe, inputs)
    cf.disable(pipe)
    with cf.accelerate(fresh(), method) as other:
        assert torch.equal(got, run_pipeline(other, inputs))


def test_a_call_after_a_wrong_one():
    """The settings stay; a call that they fit runs."""
    pipe, entries = fresh(), [[C], [S]]
    two, three = (random_inputs(pipe, images=count, steps=2) for count in (2, 3))
    with cf.accelerate(pipe, "composite", adapter_names=entries):
        want = run_pipeline(pipe, two)
        with pytest.raises(ValueError, match=r"adapter_names.*2.*3|adapter_names.*3.*2"):
            run_pipeline(pipe, three)
        assert torch.equal(run_pipeline(pipe, two), want)


def test_not_with_clora():
    pipe = adapters.fresh([*SCALES], shape="one_layer")
    with pytest.raises(ValueError, match="adapter_names"):
        cf.enable(pipe, clora(pipe), adapter_names=[[C]])
    assert helpers.call(pipe, num_inference_steps=1).isfinite().all()
