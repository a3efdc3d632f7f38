"""The recorded runs of the released CLoRA."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cmlora_fast import CLoRA, Row

FOLDER = Path(__file__).parents[1] / "clora" / "data"
NAMES = ["clora2", "clora2_style", "clora_mask_only"]
RECORDED = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the recorded runs are not in this copy of the repository"
)


def load(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "spec"}
        return json.loads(str(file["spec"])), arrays


def method_of(spec):
    """What a user would pass to reproduce the run; the recorded embeddings replace the prompts."""
    rows = [
        Row(name or None, "", "", mask, [group[j] for group in spec["groups"]])
        for j, (name, mask) in enumerate(zip(spec["loras"], spec["mask_indices"], strict=True))
    ]
    same_name = (
        "style_lora_weight style_weight",
        "step_size step_size",
        "max_iter_to_alter max_iter_to_alter",
        "iterative_steps iterative_steps",
        "iterative_steps_steps iterative_steps_steps",
        "mask_threshold_alpha mask_threshold_alpha",
        "latent_update latent_update",
        "apply_mask_after apply_mask_after",
    )
    fields = {ours: spec[theirs] for theirs, ours in map(str.split, same_name)}
    styles = [spec["style_lora"]] if spec["style_lora"] else []
    return CLoRA(rows=rows, style_adapters=styles, reference_compat=True, **fields)
