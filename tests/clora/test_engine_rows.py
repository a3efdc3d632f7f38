"""CLoRA through an unchanged pipeline call, against the plain loop and against its own parts."""

import dataclasses

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast import CLoRA, Concept, Row

from ..support import adapters, helpers
from ..support.clora_rows import NAMES, clora, fresh
from ..support.loops import random_inputs, run_pipeline
from ..support.plain_loop import PlainLoop

CLOSE = 1e-4  # relative, along a trajectory in float32


def paint(pipe, method, inputs, **options):
    with cf.accelerate(pipe, method, **options):
        return run_pipeline(pipe, inputs)


def plain_latents(pipe, method, inputs, scheduler="ddim"):
    loop = PlainLoop(pipe.unet, helpers.SCHEDULERS[scheduler](), method, inputs["guidance_scale"])
    return loop.run(inputs["latents"], inputs["num_inference_steps"]).stacked("latents")


@pytest.mark.parametrize(
    "size, fields",
    [
        ((16, 16), {}),
        ((16, 24), dict(mask_opening=True, mask_dilate=True)),  # not square, 4 x 6 maps
        ((24, 16), dict(mask_closing=True, mask_erode=True, apply_mask_after=1)),
        ((16, 16), dict(maps_from="cond", temperature=0.2)),
        ((16, 16), dict(refresh_after_update=True)),
        ((16, 16), dict(style_adapters=["style_1"], style_weight=0.5)),
    ],
    ids=str,
)
def test_three_concepts_equal_the_plain_loop(size, fields):
    pipe = fresh([*NAMES, "style_1"])
    method = clora(pipe, **fields)
    inputs = random_inputs(pipe, steps=4, size=size)
    with cf.accelerate(pipe, method, record=True):
        latents = run_pipeline(pipe, inputs)
        summary = cf.summary(pipe)
    loop = PlainLoop(pipe.unet, helpers.SCHEDULERS["ddim"](), method, inputs["guidance_scale"])
    run = loop.run(inputs["latents"], 4)
    assert helpers.relative(latents[:, 0], run.stacked("latents")) < CLOSE
    assert [loss for step in summary.steps for loss in step.loss] == pytest.approx(run.losses)
    assert (summary.maps - run.stacked("maps")).abs().max() < 1e-5
    assert torch.equal(summary.masks, run.stacked("masks"))
    assert len(run.losses) == 4 and run.stacked("masks").mean() < 0.9


@pytest.mark.parametrize("count", range(1, 9))
def test_any_number_of_concepts(count):
    """One concept has nothing to be told apart from: no update, its mask and the base."""
    pipe = fresh()
    method = clora(pipe, count, iterative_steps=(), max_iter_to_alter=1)
    inputs = random_inputs(pipe, steps=2)
    with cf.accelerate(pipe, method):
        latents = run_pipeline(pipe, inputs)
        steps = cf.summary(pipe).steps
    if count == 1:
        method = dataclasses.replace(method, latent_update=False)
    assert [len(step.loss) for step in steps] == [int(count > 1), 0]
    assert helpers.relative(latents[:, 0], plain_latents(pipe, method, inputs)) < CLOSE
    assert steps[0].full_rows == 2 * (count + 1)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("fields", [{}, dict(maps_from="cond", refresh_after_update=True)], ids=str)
def test_rows_in_chunks_give_the_same_image(max_rows, fields):
    pipe = fresh()
    method, inputs = clora(pipe, **fields), random_inputs(pipe, steps=4)
    whole = paint(pipe, method, inputs, record=True)
    before = cf.summary(pipe)
    parts = paint(pipe, method, inputs, record=True, max_rows=max_rows)
    after = cf.summary(pipe)
    assert helpers.relative(parts, whole) < CLOSE
    assert torch.equal(after.masks, before.masks)
    assert after.steps[0].loss == pytest.approx(before.steps[0].loss, rel=1e-5)


def test_no_batch_is_larger_than_max_rows():
    pipe, seen = fresh(), []
    middle = pipe.unet.mid_block
    hook = middle.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    paint(pipe, clora(pipe), random_inputs(pipe, steps=2), max_rows=3)
    hook.remove()
    assert max(seen) == 3 and sum(seen) % 8 == 0  # 4 rows, 2 halves, every time


def test_a_base_row_is_the_base_model_and_a_style_adds_to_a_concept():
    """Predictions of single rows: what the fusion returns where one row has every pixel."""
    names = ["character_1", "clothing_1"]
    pipe = fresh(names, text=False)
    inputs = random_inputs(pipe, steps=1)
    own = dict(row_prompt_embeds=inputs["prompt_embeds"])
    own["row_negative_prompt_embeds"] = inputs["negative_prompt_embeds"]

    def alone(adapter, **fields):
        rows = [Row(adapter, "")]
        return paint(pipe, CLoRA(rows=rows, latent_update=False, **own, **fields), inputs)

    base = alone(None)
    concept = alone("character_1")
    both = alone("character_1", style_adapters=["clothing_1"], style_weight=0.6)
    pipe.disable_lora()
    assert helpers.relative(base, run_pipeline(pipe, inputs)) < 1e-5
    pipe.enable_lora()
    pipe.set_adapters(["character_1"])
    assert helpers.relative(concept, run_pipeline(pipe, inputs)) < 1e-5
    pipe.set_adapters(names, [1.0, 0.6])
    assert helpers.relative(both, run_pipeline(pipe, inputs)) < 1e-5


def test_adapter_weights_count():
    pipe = fresh(weights=[0.5, 1.0, 1.5])
    inputs, method = random_inputs(pipe, steps=2), clora(fresh())
    weighted = paint(pipe, method, inputs)
    other = paint(fresh(), method, inputs)
    assert helpers.relative(weighted, other) > 1e-3
    pipe.set_adapters(NAMES)
    assert helpers.relative(paint(pipe, method, inputs), other) < 1e-6


def test_images_of_a_batch_are_those_painted_alone():
    pipe = fresh()
    method, inputs = clora(pipe), random_inputs(pipe, steps=3)
    draw = torch.Generator().manual_seed(9)
    latents = torch.randn(2, 4, 16, 16, generator=draw)
    alone = [paint(pipe, method, {**inputs, "latents": z[None]}) for z in latents]
    first = cf.summary(pipe).steps[0].loss
    with cf.accelerate(pipe, method):
        both = run_pipeline(pipe, {**inputs, "latents": latents, "num_images_per_prompt": 2})
        step = cf.summary(pipe).steps[0]
    assert helpers.relative(both, torch.cat(alone, 1)) < CLOSE
    assert step.per_image[1]["loss"] == pytest.approx(first, rel=1e-4)
    assert step.loss == pytest.approx(step.per_image[0]["loss"])


def test_the_gradient_goes_through_the_schedulers_scale():
    pipe = fresh()
    pipe.scheduler = helpers.SCHEDULERS["euler"]()
    method, inputs = clora(pipe), random_inputs(pipe, steps=3)
    wanted = plain_latents(fresh(), method, inputs, "euler")
    assert helpers.relative(paint(pipe, method, inputs)[:, 0], wanted) < CLOSE


CONCEPTS = [Concept("character_1", "fox", "green"), Concept("clothing_1", "coat")]
SCENE = "a fox and a coat"


def by_hand(pipe, negative, adapters_of_text=True):
    """The rows of SCENE with their embeddings, each encoded under its adapter alone."""
    words = [SCENE, "a green fox and a coat", SCENE]
    tokens = [([2], [7]), ([2, 3], [8]), ([2], [7])]  # "and" is spelled in three
    rows, text = [], []
    for j, adapter in enumerate([None, "character_1", "clothing_1"]):
        rows.append(Row(adapter, words[j], negative, tokens[j][j - 1] if j else (), tokens[j]))
        if adapter and adapters_of_text:
            pipe.enable_lora()
            pipe.set_adapters([adapter])
        else:
            pipe.disable_lora()
        with torch.no_grad():
            text.append(pipe.encode_prompt(words[j], "cpu", 1, True, negative)[:2])
    pipe.enable_lora()
    pipe.set_adapters(["character_1", "clothing_1"])
    positive, negative = (torch.cat(part) for part in zip(*text, strict=True))
    return dict(rows=rows, row_prompt_embeds=positive, row_negative_prompt_embeds=negative)


@pytest.mark.parametrize("text_adapters", [True, False])
def test_concepts_are_the_rows_they_stand_for(text_adapters):
    names = ["character_1", "clothing_1"]
    pipe = fresh(names, text=True)
    quick = dict(iterative_steps=(), max_iter_to_alter=1)
    given = dict(num_inference_steps=2, prompt=SCENE, negative_prompt="blurry")
    easy = CLoRA(concepts=CONCEPTS, text_encoder_adapters=text_adapters, **quick)
    with cf.accelerate(pipe, easy):
        found = helpers.call(pipe, **given)
    hand = CLoRA(**by_hand(pipe, "blurry", text_adapters), **quick)
    with cf.accelerate(pipe, hand):
        wanted = helpers.call(pipe, **given)
    assert helpers.relative(found, wanted) < 1e-5
    assert cf.summary(pipe).steps[0].loss


def test_an_adapter_without_text_encoder_layers_changes_no_prompt():
    pipe = fresh(["character_1"], text=True)
    adapters.add(pipe, "clothing_1")
    pipe.set_adapters(["character_1", "clothing_1"])
    method = CLoRA(concepts=CONCEPTS, latent_update=False)
    with cf.accelerate(pipe, method):
        image = helpers.call(pipe, num_inference_steps=1, prompt=SCENE)
    assert image.isfinite().all()


WRONG = [
    (dict(concepts=[Concept("style_9", "fox")]), {}, "expected an active adapter"),
    (dict(concepts=[Concept("character_1", "bear")]), {}, "'bear' .* does not occur"),
    (dict(concepts=CONCEPTS, style_adapters=["style_9"]), {}, "CLoRA.style_adapters"),
    (dict(concepts=CONCEPTS), dict(prompt=["a fox", "a coat"]), "one prompt per call"),
    (dict(rows=[Row("style_9", "a fox")]), {}, r"CLoRA.rows\[0\].adapter"),
    (
        dict(rows=[Row(None, "x")], row_prompt_embeds=torch.zeros(1, 77, 8),
             row_negative_prompt_embeds=torch.zeros(1, 77, 8)),
        {},
        "row_prompt_embeds: expected .* width 32; got 8",
    ),
]  # fmt: skip


@pytest.mark.parametrize("fields, given, message", WRONG)
def test_what_cannot_run_is_said_and_the_pipeline_lives_on(fields, given, message):
    pipe = fresh(["character_1", "clothing_1"])
    call = dict(num_inference_steps=1, prompt=SCENE)
    wanted = helpers.call(pipe, **call)
    with cf.accelerate(pipe, CLoRA(**fields)), pytest.raises(ValueError, match=message):
        helpers.call(pipe, **{**call, **given})
    assert torch.equal(helpers.call(pipe, **call), wanted)


@pytest.mark.parametrize("weights", ["fold", "delta"])
def test_under_inference_mode(weights):
    """Updates need gradients, of tensors that inference mode makes without: also by runs before."""
    pipe = fresh()
    method, inputs = clora(pipe), random_inputs(pipe, steps=3)
    want = paint(pipe, method, inputs)
    with cf.accelerate(pipe, "composite", weights=weights):
        with torch.inference_mode():
            run_pipeline(pipe, inputs)
        cf.enable(pipe, method, weights=weights)
        assert helpers.relative(run_pipeline(pipe, inputs), want) < CLOSE
        with torch.inference_mode():
            assert helpers.relative(run_pipeline(pipe, inputs), want) < CLOSE
