"""CLoRA on SDXL (experimental): two text encoders, pooled prompts per row, the inner stage."""

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast import CLoRA, Concept, Row
from cmlora_fast.unet.tap import AttentionTap
from cmlora_fast.unet.topology import Topology

from ..support import adapters, helpers

NAMES = ["character_1", "clothing_1"]
SCENE = "a fox and a coat"
CONCEPTS = [Concept("character_1", "fox", "green"), Concept("clothing_1", "coat")]
QUICK = dict(iterative_steps=(0,), iterative_steps_steps=1, max_iter_to_alter=1)


def fresh():
    return adapters.fresh(NAMES, kind="sdxl", shape="sdxl", text=True)


def paint(pipe, method, **given):
    options = {key: given.pop(key) for key in ("max_rows", "record") if key in given}
    with cf.accelerate(pipe, method, **options):
        return helpers.call(pipe, **{"prompt": SCENE, "num_inference_steps": 2, **given})


def test_single_rows_are_the_pipelines_own_images():
    """Each row has its own prompt, adapter, and pooled embeddings of both text encoders."""
    pipe, scene = fresh(), "a green fox"
    for adapter in (None, "character_1"):
        method = CLoRA(rows=[Row(adapter, scene, "blurry")], latent_update=False)
        got = paint(pipe, method, prompt="something else", negative_prompt="other")
        other = fresh()
        other.set_adapters([adapter]) if adapter else other.disable_lora()
        wanted = helpers.call(other, prompt=scene, negative_prompt="blurry", num_inference_steps=2)
        assert helpers.relative(got, wanted) < 1e-4


def test_no_negative_prompt_is_the_pipelines_own():
    """SDXL has zeros for it, not the embedding of an empty text."""
    pipe = fresh()
    assert pipe.config.force_zeros_for_empty_prompt
    got = paint(pipe, CLoRA(rows=[Row(None, SCENE)], latent_update=False), negative_prompt=None)
    pipe.disable_lora()
    wanted = helpers.call(pipe, prompt=SCENE, negative_prompt=None, num_inference_steps=2)
    assert helpers.relative(got, wanted) < 1e-4


def test_concepts_update_the_latents_and_chunks_change_nothing():
    pipe, method = fresh(), CLoRA(concepts=CONCEPTS, **QUICK)
    whole = paint(pipe, method, record=True)
    summary = cf.summary(pipe)
    losses = summary.steps[0].loss
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert summary.maps.shape == (2, 3, 4, 4, 77)  # latents / 4
    still = paint(pipe, CLoRA(concepts=CONCEPTS, latent_update=False))
    assert helpers.relative(whole, still) > 1e-4
    assert helpers.relative(paint(pipe, method, max_rows=4, record=True), whole) < 1e-4
    assert cf.summary(pipe).steps[0].loss == pytest.approx(losses, rel=1e-4)


def test_the_gradient_is_that_of_the_loss():
    """A short step along it changes the next loss by its squared length."""
    pipe = fresh()
    steps = [1e-2, 0.0]
    losses = []
    for size in steps:
        fields = {**QUICK, "step_size": size}
        paint(pipe, CLoRA(concepts=CONCEPTS, **fields), num_inference_steps=2)
        losses.append(cf.summary(pipe).steps[0].loss)
    assert losses[0][0] == losses[1][0] == losses[1][1]
    assert losses[0][1] < losses[0][0]


def test_only_the_way_down_and_the_middle_are_tapped():
    pipe = fresh()
    tap = AttentionTap()
    tap.attach(pipe.unet)
    tapped = [n for n, m in pipe.unet.named_modules() if "Tap" in repr(vars(m).get("processor"))]
    tap.detach()
    assert any(name.startswith("mid_block") for name in tapped)
    assert not any(name.startswith("up_blocks") for name in tapped)
    assert Topology.of(pipe.unet).last_unit_at(2) == -1


def test_embeddings_in_place_of_the_text_encoders():
    """Pooled embeddings are those of the call then."""
    pipe = fresh()
    with torch.no_grad():
        positive, negative, *_ = pipe.encode_prompt(SCENE, negative_prompt="blurry")
    rows = [Row(None, ""), Row("character_1", "", "", [2], [[2]])]
    own = dict(row_prompt_embeds=positive.repeat(2, 1, 1), row_negative_prompt_embeds=negative)
    image = paint(pipe, CLoRA(rows=rows[:1], latent_update=False, **{
        name: value[:1] for name, value in own.items()
    }), negative_prompt="blurry")  # fmt: skip
    assert image.isfinite().all()
    assert paint(pipe, CLoRA(rows=rows, **own), negative_prompt="blurry").isfinite().all()


def test_other_conditions_are_refused():
    pipe = fresh()
    pipe.unet.config.addition_embed_type = "text_time"
    added = helpers.unet_inputs(pipe)["added_cond_kwargs"]
    from cmlora_fast.engine.contrast import check_contrast
    from cmlora_fast.unet.inputs import read_call

    given = helpers.unet_inputs(pipe) | {"added_cond_kwargs": {**added, "image_embeds": []}}
    inputs = read_call(pipe.unet, (), given)
    with pytest.raises(ValueError, match=r"no conditions beside the text; got \['image_embeds'\]"):
        check_contrast(None, inputs, 2, CLoRA(rows=[Row(None, "x")]), None)
