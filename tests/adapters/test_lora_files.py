"""LoRA files are read from their headers, matched with a model, and refused by name."""

import json

import pytest
import torch
from cmlora_fast.adapters.file import read_lora
from cmlora_fast.adapters.fit import check_lora, meta_models, misfits
from safetensors.torch import save_file

from ..support import adapters, helpers
from ..support.lora_files import BROKEN


@pytest.fixture(scope="module")
def pipe():
    return helpers.pipeline("sd", "one_layer")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(loras, name):
    with pytest.raises(ValueError) as caught:
        check_lora(loras[name])
    assert str(loras[name]) in str(caught.value) and BROKEN[name] in str(caught.value)


def test_another_architecture_is_told_with_keys_and_shapes(loras, pipe):
    with pytest.raises(ValueError) as caught:
        check_lora(loras["other"], pipe.unet)
    text = str(caught.value)
    assert "made for another architecture: 128 of its 128 layers do not fit" in text
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.weight"
    assert f"{key} [1, 32]: expected [1, 16]" in text
    assert text.endswith("and 125 more")


def test_a_component_that_the_model_lacks_is_named(loras, pipe):
    wrong = misfits(read_lora(loras["background_1"]), {"unet": pipe.unet})
    assert {misfit.component for misfit in wrong} == {"text_encoder"}
    assert str(wrong[0]).endswith("this model has no text_encoder")


@pytest.mark.parametrize("kind, shape", [("sd", "one_layer"), ("sd", "sd15"), ("sdxl", "sdxl")])
@pytest.mark.parametrize("naming", ["diffusers/PEFT", "kohya"])
def test_own_loras_fit(tmp_path, kind, shape, naming):
    pipe = helpers.pipeline(kind, shape)
    weights = adapters.state_dict(pipe, adapters.EVERYTHING, text=True)
    if naming == "kohya":
        weights = adapters.kohya(weights, adapters.mixed_alphas)
    save_file(weights, tmp_path / "x.safetensors")
    encoders = {n: getattr(pipe, n) for n in ("text_encoder", "text_encoder_2") if hasattr(pipe, n)}
    file = check_lora(tmp_path / "x.safetensors", pipe.unet, encoders)
    assert (file.kind, file.naming) == ("LoCon", naming)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors", adapter_name="x")
    assert not misfits(file, {"unet": pipe.unet, **encoders})  # PEFT's wrappers are seen through


@pytest.mark.parametrize(
    "sgm, diffusers",
    [
        ("input_blocks_1_1_proj_in", "down_blocks_0_attentions_0_proj_in"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        ("input_blocks_5_0_in_layers_2", "down_blocks_1_resnets_1_conv1"),
        ("middle_block_1_proj_out", "mid_block_attentions_0_proj_out"),
        ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
        ("output_blocks_5_2_conv", "up_blocks_1_upsamplers_0_conv"),
        ("output_blocks_4_1_proj_in", "up_blocks_1_attentions_1_proj_in"),
        ("time_embed_0", "time_embedding_linear_1"),
    ],
)
def test_names_of_the_original_code_are_understood(tmp_path, sgm, diffusers):
    shapes = {
        name.replace(".", "_"): module.weight
        for name, module in helpers.unet("sdxl").named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    if diffusers not in shapes:
        shapes = {
            name.replace(".", "_"): module.weight
            for name, module in helpers.unet("sd15").named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
    weight = shapes[diffusers]
    tensors = {
        f"lora_unet_{sgm}.lora_down.weight": torch.ones(2, *weight.shape[1:]),
        f"lora_unet_{sgm}.lora_up.weight": torch.ones(
            weight.shape[0], 2, *([1] * (weight.ndim - 2))
        ),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    fitting = [
        shape for shape in ("sdxl", "sd15") if not misfits(file, {"unet": helpers.unet(shape)})
    ]
    assert fitting


@pytest.mark.parametrize("ranks", [(2, 3), (0, 0)])
def test_factors_without_a_common_rank_are_no_layer(tmp_path, ranks):
    path, layer = tmp_path / "x.safetensors", "unet.a.to_q"
    down, up = torch.ones(ranks[0], 4), torch.ones(4, ranks[1])
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    with pytest.raises(ValueError, match="not a LoRA: none of its 2 tensors is one"):
        check_lora(path)


def test_alphas_that_diffusers_keeps_in_the_metadata_are_read(tmp_path):
    tensors = {}
    for name in ("a.to_q", "a.to_k", "b.to_q"):
        tensors[f"unet.{name}.lora_A.weight"] = torch.ones(4, 8)
        tensors[f"unet.{name}.lora_B.weight"] = torch.ones(8, 4)
    config = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"a.to_q": 8, "o_k": 5}}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    alphas = {layer.name: layer.alpha for layer in read_lora(tmp_path / "x.safetensors").layers}
    assert alphas == {"a.to_q": 8.0, "a.to_k": 2.0, "b.to_q": 2.0}


def test_a_model_is_known_by_its_configuration_alone(tmp_path, pipe):
    pipe.unet.save_config(tmp_path / "unet")
    (unet,) = meta_models(tmp_path).values()
    assert {p.device.type for p in unet.parameters()} == {"meta"}
    shapes = {name: p.shape for name, p in pipe.unet.named_parameters()}
    assert {name: p.shape for name, p in unet.named_parameters()} == shapes
    (tmp_path / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"unet/config.json: not JSON"):
        meta_models(tmp_path)
    with pytest.raises(ValueError, match="expected a diffusers directory"):
        meta_models(tmp_path / "elsewhere")
