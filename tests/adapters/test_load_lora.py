"""``load_lora``: every layout and kind adds the update that the file's own numbers mean."""

import cmlora_fast as cf
import pytest
import torch
from safetensors.torch import save_file

from ..support import adapters, corpus, helpers
from ..support.helpers import relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def diffusers_new(part, name):
    return f"{part}.{name}", ".lora_A.weight", ".lora_B.weight"


def diffusers_old(part, name):
    """As attention processors were saved, and text encoders beside them."""
    block, _, layer = name.removesuffix(".0").rpartition(".")
    if part == "unet":
        return f"unet.{block}.processor.{layer}", "_lora.down.weight", "_lora.up.weight"
    ends = ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
    return f"{part}.text_model.{name.removeprefix('text_model.')}", *ends


def bare(part, name):
    return f"base_model.model.{name}", ".lora_A.weight", ".lora_B.weight"


def kohya(part, name):
    return corpus.kohya_stem(part, name), ".lora_down.weight", ".lora_up.weight"


def lycoris(part, name):
    return f"lycoris_{name.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"


def onetrainer(part, name):
    return f"lora_unet.{name}", ".lora_down.weight", ".lora_up.weight"


ALPHA = adapters.mixed_alphas
ATTENTION = corpus.LINEAR.replace(r"|up_blocks\.0.*ff\.net\.2", "")
LAYOUTS = {
    "diffusers new": lambda p: corpus.plain(p, diffusers_new, pattern=corpus.BOTH, text=True),
    "diffusers old": lambda p: corpus.plain(p, diffusers_old, pattern=ATTENTION, text=True),
    "diffusers, alphas": lambda p: corpus.plain(p, diffusers_new, alpha=ALPHA),
    "bare PEFT": lambda p: corpus.plain(p, bare, pattern=corpus.BOTH),
    "kohya": lambda p: corpus.plain(p, kohya, alpha=ALPHA, pattern=corpus.BOTH, text=True),
    "kohya, no alpha": lambda p: corpus.plain(p, kohya),
    "LyCORIS prefix": lambda p: corpus.plain(p, lycoris, alpha=ALPHA, pattern=corpus.BOTH),
    "OneTrainer": lambda p: corpus.plain(p, onetrainer, alpha=ALPHA),
    "LoCon with Tucker": corpus.locon_tucker,
    "LoHa": corpus.loha,
    "LoHa of a high rank": lambda p: corpus.loha(p, rank=6),
    "LoHa with Tucker": corpus.loha_tucker,
    "LoKr, whole": lambda p: corpus.lokr(p, "whole"),
    "LoKr": lambda p: corpus.lokr(p, "low rank"),
    "LoKr, both low rank": lambda p: corpus.lokr(p, "both low rank"),
    "full diff": corpus.full,
    "DoRA": corpus.dora,
}


@pytest.fixture
def pipe():
    return helpers.pipeline("sd", "dummy")


def written(tmp_path, made, name="some.file", **metadata):
    path = tmp_path / f"{name}.safetensors"
    save_file(made.tensors, path, metadata=metadata or None)
    return path


@torch.no_grad()
def outputs(pipe):
    """One UNet call, and what each text encoder makes of a prompt."""
    found = [pipe.unet(**helpers.unet_inputs(pipe))[0]]
    tokens = torch.arange(2, 12)[None]
    for part in ("text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:
            found.append(getattr(pipe, part)(tokens).last_hidden_state)
    return found


def equal(got, want):
    return max(relative(x, y) for x, y in zip(got, want, strict=True)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_adds_its_own_update(pipe, tmp_path, layout):
    made = LAYOUTS[layout](pipe)
    plain = outputs(pipe)
    report = cf.load_lora(pipe, written(tmp_path, made))
    assert report.adapter_name == "some_file" and not report.unmatched
    assert set(report.matched) == set(made.updates)
    want = outputs(made.merge_into(helpers.pipeline("sd", "dummy")))
    assert equal(outputs(pipe), want) and relative(want[0], plain[0]) > 1e-3
    pipe.unload_lora_weights()
    assert all(map(torch.equal, outputs(pipe), plain))


@pytest.mark.parametrize("method", [None, "composite", "cmlora"])
@pytest.mark.parametrize("layout", ["kohya", "LoHa", "LoKr", "full diff", "LoCon with Tucker"])
def test_the_methods_compose_it(pipe, tmp_path, layout, method):
    """One adapter: by every method the image of the merged weights, then all as it was."""
    made = LAYOUTS[layout](pipe)
    cf.load_lora(pipe, written(tmp_path, made))
    if method == "cmlora":
        method = cf.CMLoRA(cache_interval=1)
    merged = made.merge_into(helpers.pipeline("sd", "dummy"))
    loaded = helpers.call(pipe, num_inference_steps=2)
    with cf.accelerate(pipe, method):
        got = helpers.call(pipe, num_inference_steps=2)
    assert relative(got, helpers.call(merged, num_inference_steps=2)) < 1e-4
    assert torch.equal(helpers.call(pipe, num_inference_steps=2), loaded)


def sgm(part, name):
    """By the original code's numbers: of SDXL two layers a block, of the first three blocks."""
    if part != "unet":
        return corpus.kohya_stem(part, name, xl=True), ".lora_down.weight", ".lora_up.weight"
    spelled = {
        "down_blocks.1.attentions.0": "input_blocks.4.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "down_blocks.1.resnets.0.conv1": "input_blocks.4.0.in_layers.2",
        "down_blocks.1.resnets.0.conv2": "input_blocks.4.0.out_layers.3",
        "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    }
    start = next(s for s in spelled if name.startswith(s))
    place = (spelled[start] + name.removeprefix(start)).replace(".", "_")
    return f"lora_unet_{place}", ".lora_down.weight", ".lora_up.weight"


PATTERN = (
    r"^((down_blocks\.1|up_blocks\.0)\.attentions\.0.*attn2\.to_[qk]|"
    r"mid_block.*attn1\.to_out\.0|mid_block\.resnets\.1\.conv1|down_blocks\.1\.resnets\.0\.conv[12])$"
)


def test_sdxl_by_the_names_of_the_original_code(tmp_path):
    pipe = helpers.pipeline("sdxl")
    made = corpus.plain(pipe, sgm, alpha=ALPHA, pattern=PATTERN, text=True)
    report = cf.load_lora(pipe, written(tmp_path, made))
    assert report.format == "kohya (SGM blocks)" and set(report.matched) == set(made.updates)
    want = outputs(made.merge_into(helpers.pipeline("sdxl")))
    assert equal(outputs(pipe), want) and len(want) == 3
