import json

import pytest
import torch
from cmlora_fast.cli.errors import CliError
from cmlora_fast.cli.lora_files import check_lora
from cmlora_fast.cli.lora_match import misfits
from cmlora_fast.cli.lora_read import read_lora
from safetensors.torch import save_file

from ..support import adapters, helpers

BROKEN = {
    "missing": "no such file; expected a LoRA in a .safetensors file",
    "text": "not a safetensors file",
    "truncated": "truncated safetensors file",
    "model": "not a LoRA: none of its 2 tensors is one (conv_in.bias, conv_in.weight)",
    "dora": "is DoRA; expected plain LoRA",
    "loha": "is LoHa; expected plain LoRA",
    "lokr": "is LoKr; expected plain LoRA",
    "nan": "NaN or infinity in 1 of its",
    "odd": "are not plain LoRA (bundle_emb.word)",
}


@pytest.fixture(scope="module")
def pipe():
    return helpers.pipeline("sd", "one_layer")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(loras, name):
    with pytest.raises(CliError) as caught:
        check_lora(loras[name])
    assert str(loras[name]) in str(caught.value) and BROKEN[name] in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_generate_tells_of_a_broken_file_in_one_line(cmlora, loras, name, tmp_path):
    out = tmp_path / "x.png"  # the model is not even looked for
    code, said, err = cmlora("generate", "-p", "x", "--lora", loras[name], "--out", out)
    assert code == 1 and not said and not out.exists()
    assert err.startswith("error: ") and err.count("\n") == 1 and BROKEN[name] in err


def test_another_architecture_is_told_with_keys_and_shapes(loras, pipe):
    with pytest.raises(CliError) as caught:
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


def test_inspect_json(cmlora, loras, model):
    code, out, err = cmlora(*["lora", "inspect", loras["background_1"], "--model", model, "--json"])
    assert code == 0 and not err
    report = json.loads(out)
    assert (report["kind"], report["naming"]) == ("LoCon", "kohya")
    assert report["targets"]["text_encoder"] == 12 and report["targets"]["unet"] > 80
    assert set(report["ranks"]) == {"1", "2", "3", "4", "8"}
    assert set(report["alphas"]) == {"1.0", "2.0", "4.0", "6.0"}
    assert report["metadata"] == {"made_by": "tests"} and report["dtypes"] == ["F32"]
    assert report["non_finite"] == [] and report["fit"]["misfits"] == []
    assert report["bytes"] == loras["background_1"].stat().st_size
    assert report["arguments"]["model"] == str(model) and report["versions"]["diffusers"]


def test_inspect_names_what_does_not_fit(cmlora, loras, model):
    code, out, err = cmlora("lora", "inspect", loras["other"], "--model", model, "--json")
    assert code == 1
    assert err == f"error: {loras['other']}: 128 of its 128 layers do not fit {model}\n"
    first = json.loads(out)["fit"]["misfits"][0]
    assert (first["shape"], first["expected"]) == ([1, 32], [1, 16])
    code, out, _ = cmlora("lora", "inspect", loras["other"], "--model", model)
    assert code == 1 and "does not fit" in out


@pytest.mark.parametrize("name, kind", [("dora", "DoRA"), ("loha", "LoHa"), ("lokr", "LoKr")])
def test_inspect_names_other_kinds(cmlora, loras, name, kind):
    code, out, _ = cmlora("lora", "inspect", loras[name], "--json")
    assert code == 0 and json.loads(out)["kind"] == kind


def test_inspect_finds_nan(cmlora, loras):
    code, out, _ = cmlora("lora", "inspect", loras["nan"], "--json")
    assert code == 0 and len(json.loads(out)["non_finite"]) == 1
    assert "NaN or infinity" in cmlora("lora", "inspect", loras["nan"])[1]


def test_inspect_finds_an_alpha_that_is_no_number(cmlora, tmp_path):
    path, layer = tmp_path / "x.safetensors", "lora_unet_x"
    factors = {
        f"{layer}.lora_down.weight": torch.ones(2, 4),
        f"{layer}.lora_up.weight": torch.ones(4, 2),
    }
    save_file({**factors, f"{layer}.alpha": torch.tensor(float("nan"))}, path)
    code, out, _ = cmlora("lora", "inspect", path, "--json")
    assert code == 0 and json.loads(out)["non_finite"] == [f"{layer}.alpha"]


@pytest.mark.parametrize("ranks", [(2, 3), (0, 0)])
def test_factors_without_a_common_rank_are_no_layer(tmp_path, ranks):
    path, layer = tmp_path / "x.safetensors", "unet.a.to_q"
    down, up = torch.ones(ranks[0], 4), torch.ones(4, ranks[1])
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    with pytest.raises(CliError, match="not a LoRA: none of its 2 tensors is one"):
        check_lora(path)


@pytest.mark.parametrize("name", ["missing", "text", "truncated", "model"])
def test_inspect_refuses_what_it_cannot_read(cmlora, loras, name):
    code, out, err = cmlora("lora", "inspect", loras[name])
    assert code == 1 and not out
    assert err.startswith(f"error: {loras[name]}: ") and err.count("\n") == 1


def test_generate_names_another_architecture(cmlora, model, loras, tmp_path):
    options = ["--lora", loras["other"], "--out", tmp_path / "x.png"]
    code, said, err = cmlora("generate", "-p", "x", "--model", model, *options)
    assert code == 1 and not said and err.count("\n") == 1
    assert err.startswith(f"error: {loras['other']}: made for another architecture")


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
