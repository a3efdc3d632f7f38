import json

import pytest
import torch
from safetensors.torch import save_file

from ..support.lora_files import BROKEN


@pytest.mark.parametrize("name", BROKEN)
def test_generate_tells_of_a_broken_file_in_one_line(cmlora, loras, name, tmp_path):
    out = tmp_path / "x.png"  # the model is not even looked for
    code, said, err = cmlora("generate", "-p", "x", "--lora", loras[name], "--out", out)
    assert code == 1 and not said and not out.exists()
    assert err.startswith("error: ") and err.count("\n") == 1 and BROKEN[name] in err


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
