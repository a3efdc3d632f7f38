"""Files in the forms that trainers write: every layer gets its own alpha / rank, no key is lost."""

import json

import pytest
import torch
from cmlora_fast.adapters.file import read_lora
from cmlora_fast.cli.lora_files import LoraSpec
from cmlora_fast.cli.pipelines import add_loras
from safetensors.torch import save_file

from ..support import adapters, helpers

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT: patterns that diffusers made up
PATTERN = f"{adapters.ATTENTION}|{adapters.FEED_FORWARD}|{adapters.RESNETS}"


@pytest.fixture
def pipe():
    return helpers.pipeline("sd", "dummy")


def alphas_of(weights, alpha):
    """Key without its factor -> alpha; the same order as ``adapters.kohya``."""
    stems = [k.removesuffix(".lora_A.weight") for k in weights if k.endswith("lora_A.weight")]
    return {stem: alpha(index) for index, stem in enumerate(stems)}


@torch.no_grad()
def merged_by_hand(pipe, weights, alphas):
    """W + alpha / rank * B A, summed in float64."""
    for stem, alpha in alphas.items():
        a, b = (weights[f"{stem}.lora_{side}.weight"].double() for side in "AB")
        part, _, name = stem.partition(".")
        weight = getattr(pipe, part).get_submodule(name).weight
        delta = (b.flatten(1) @ a.flatten(1)).reshape(weight.shape) * (alpha / a.shape[0])
        weight.copy_(weight.double() + delta)
    return helpers.call(pipe, num_inference_steps=2)


def loaded(pipe, path):
    add_loras(pipe, [LoraSpec("style", path, 1.0)], [read_lora(path)])
    return helpers.call(pipe, num_inference_steps=2)


ALPHAS = {
    "one for all": lambda index: 2.0,
    "another for each": adapters.mixed_alphas,
    "the rank of each": lambda index: float(adapters.mixed_ranks(index)),
    "rare exceptions": lambda index: 3.0 if index % 7 == 0 else 1.5,
    "no round numbers": lambda index: 1.0 / 3 + 0.1 * index,
}


@pytest.mark.parametrize("text", [False, True], ids=["unet", "text"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_kohya_alphas(pipe, tmp_path, alpha, text):
    weights = adapters.state_dict(pipe, PATTERN, text=text)
    path = tmp_path / "kohya.safetensors"
    save_file(adapters.kohya(weights, ALPHAS[alpha]), path)
    got = loaded(pipe, path)
    want = merged_by_hand(
        helpers.pipeline("sd", "dummy"), weights, alphas_of(weights, ALPHAS[alpha])
    )
    assert helpers.relative(got, want) < 1e-4


def bare(weights):
    return {key.removeprefix("unet."): value for key, value in weights.items()}


def wrapped(weights):
    return {f"base_model.model.{key}": value for key, value in bare(weights).items()}


def old(weights):
    """Of attention processors, as diffusers wrote them before PEFT."""
    names = {"lora_A": "down", "lora_B": "up"}
    found = {}
    for key, value in weights.items():
        stem, factor, _ = key.rsplit(".", 2)
        block, _, layer = stem.removesuffix(".0").rpartition(".")
        found[f"{block}.processor.{layer}_lora.{names[factor]}.weight"] = value
    return found


FORMS = {
    "PEFT without a component": (PATTERN, bare),
    "PEFT's own": (PATTERN, wrapped),
    "attention processors": (adapters.ATTENTION, old),
    "attention processors, no component": (adapters.ATTENTION, lambda w: bare(old(w))),
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_without_a_component(pipe, tmp_path, form):
    pattern, spelled = FORMS[form]
    weights, path = adapters.state_dict(pipe, pattern), tmp_path / "x.safetensors"
    save_file(spelled(weights), path)
    got = loaded(pipe, path)
    alphas = alphas_of(weights, adapters.mixed_ranks)  # no alpha: a scale of 1
    want = merged_by_hand(helpers.pipeline("sd", "dummy"), weights, alphas)
    assert helpers.relative(got, want) < 1e-4


def test_a_folder_of_peft(pipe, tmp_path):
    """Its alphas stand in a file beside."""
    weights = adapters.state_dict(pipe, PATTERN, rank=lambda index: 4)
    special = next(stem for stem in alphas_of(weights, float) if stem.endswith("conv1"))
    config = {"lora_alpha": 6, "alpha_pattern": {special.removeprefix("unet."): 2}, "r": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = tmp_path / "adapter_model.safetensors"
    save_file(wrapped(weights), path)
    got = loaded(pipe, path)
    alphas = alphas_of(weights, lambda index: 6.0) | {special: 2.0}
    want = merged_by_hand(helpers.pipeline("sd", "dummy"), weights, alphas)
    assert helpers.relative(got, want) < 1e-4
