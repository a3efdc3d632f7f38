"""LoRA files, good ones and broken ones, and what is said of these."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import adapters, helpers

# Broken file -> what is said of it.
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


def write(folder: Path) -> dict[str, Path]:
    """Name -> file of every LoRA that the tests of files need."""
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
