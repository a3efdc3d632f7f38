"""A tiny random model on disk and LoRA files, good ones and broken ones."""

from __future__ import annotations

import pytest
import torch
from cmlora_fast.cli import main
from safetensors.torch import load_file, save_file

from ..support import adapters, helpers


@pytest.fixture
def cmlora(capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A diffusers directory: the embedded model's shape, random weights."""
    folder = tmp_path_factory.mktemp("model")
    helpers.pipeline("sd", "one_layer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loras(tmp_path_factory):
    """Name -> file of every LoRA the tests need."""
    folder = tmp_path_factory.mktemp("loras")
    pipe = helpers.pipeline("sd", "one_layer")
    other = helpers.pipeline("sd", "sd15")
    plain = adapters.state_dict(pipe, adapters.ATTENTION, seed=1)
    mixed = adapters.state_dict(pipe, adapters.EVERYTHING, seed=2, text=True)
    first = next(iter(plain))
    layer = first.removesuffix(".lora_A.weight")
    files = {
        "character_1": plain,
        "background_1": adapters.kohya(mixed, adapters.mixed_alphas),
        "other": adapters.state_dict(other, adapters.ATTENTION),
        "nan": {**plain, first: torch.full_like(plain[first], float("nan"))},
        "dora": {**plain, f"{layer}.lora_magnitude_vector": torch.ones(16)},
        "loha": {f"lora_unet_x.hada_w{i}_{j}": torch.ones(2, 2) for i in (1, 2) for j in "ab"},
        "lokr": {f"lora_unet_x.lokr_w{i}": torch.ones(2, 2) for i in (1, 2)},
        "model": {"conv_in.weight": torch.ones(4, 4, 3, 3), "conv_in.bias": torch.ones(4)},
        "odd": {**plain, "bundle_emb.word": torch.ones(4)},
    }
    paths = {name: folder / f"{name}.safetensors" for name in files}
    for name, tensors in files.items():
        save_file(tensors, paths[name], metadata={"made_by": "tests"})
    paths["truncated"] = folder / "truncated.safetensors"
    paths["truncated"].write_bytes(paths["character_1"].read_bytes()[:-100])
    paths["text"] = folder / "text.safetensors"
    paths["text"].write_text("this is not a model")
    paths["missing"] = folder / "missing.safetensors"
    assert load_file(paths["character_1"]).keys() == plain.keys()
    return paths
