"""Damaged files are refused with their name in plain words; readers take linear time."""

import json
import time
from unittest.mock import Mock

import pytest
import torch
from cmlora_fast.adapters import header
from cmlora_fast.adapters.file import non_finite, read_lora
from cmlora_fast.adapters.fit import check_lora, misfits
from safetensors.torch import load_file, save_file

from ..support import helpers
from ..support.damaged_files import DAMAGED, WHOLE, changed, packed


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_plain_words(tmp_path, name):
    path = tmp_path / "x.safetensors"
    content, message = DAMAGED[name]
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        check_lora(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and len(text) < 400


def test_what_was_damaged_is_whole(tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (WHOLE, packed(json.loads(WHOLE[8:-36]) | {"__metadata__": None})):
        path.write_bytes(content)
        (layer,) = check_lora(path).layers
        assert (layer.rank, layer.alpha) == (2, 2.0) and len(load_file(path)) == 3


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "I8", "BOOL", "U64", "C64"])
def test_every_dtype_is_read_or_refused_by_name(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    size = {"F4": [8, 4], "U64": [2, 1], "C64": [2, 1]}.get(dtype, [2, 8])
    path.write_bytes(changed("lora_unet_x.lora_down.weight", dtype=dtype, shape=size))
    assert read_lora(path).dtypes == tuple(sorted((dtype, "F32")))
    try:
        non_finite(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("name", ["empty header", "directory", "no permission", "nowhere"])
def test_other_files_are_refused_by_name(tmp_path, name, monkeypatch):
    path = tmp_path / "x.safetensors"
    message = {"empty header": "it is empty", "directory": "is a directory"}.get(name, "no such")
    if name == "empty header":
        path.write_bytes(packed("{}", b""))
    elif name == "directory":
        path.mkdir()
    elif name == "no permission":
        path.write_bytes(WHOLE)
        monkeypatch.setattr(
            header, "open", Mock(side_effect=PermissionError(13, "no")), raising=False
        )
        message = "cannot be read: no"
    with pytest.raises(ValueError) as caught:
        check_lora(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_keys_that_command_a_terminal_are_written_out(tmp_path):
    key = "x\x1b[2J\x07"
    save_file({key: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a LoRA") as caught:
        check_lora(tmp_path / "x.safetensors")
    assert str(caught.value).isprintable() and r"x\x1b[2J\x07" in str(caught.value)
    layer = {f"{key}.lora_A.weight": torch.ones(2, 3), f"{key}.lora_B.weight": torch.ones(3, 2)}
    save_file(layer, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="another architecture") as caught:
        check_lora(tmp_path / "x.safetensors", helpers.unet("one_layer"))
    assert str(caught.value).isprintable()


def test_a_block_of_5000_digits_fits_nowhere(tmp_path):
    stem = f"lora_unet_input_blocks_{'9' * 5000}_1_proj_in"
    factors = {f"{stem}.lora_down.weight": (2, 4), f"{stem}.lora_up.weight": (4, 2)}
    save_file({k: torch.ones(shape) for k, shape in factors.items()}, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    assert misfits(file, {"unet": helpers.unet("one_layer")})


def _large(path, layers, metadata):
    """A file of as many layers of one number each, and their alphas."""
    names = [f"unet.block_{n}.attn.to_q" for n in range(layers)]
    keys = [f"{n}.{end}" for n in names for end in ("lora_A.weight", "lora_B.weight")]
    header = {
        key: {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * n, 2 * n + 2]}
        for n, key in enumerate(keys)
    }
    path.write_bytes(packed({"__metadata__": metadata, **header}, bytes(2 * len(keys))))


def test_many_layers_with_many_patterns_take_seconds(tmp_path):
    path = tmp_path / "x.safetensors"
    patterns = {f"block_{n}.attn.to_q": n for n in range(0, 30_000, 10)}
    config = {"unet.alpha_pattern": patterns, "unet.lora_alpha": 0.5}
    _large(path, 50_000, {"lora_adapter_metadata": json.dumps(config)})
    began = time.perf_counter()
    file = read_lora(path)
    assert time.perf_counter() - began < 30  # 3 s; by the product it took minutes
    assert [layer.alpha for layer in file.layers[:21]] == [0, *[0.5] * 9, 10, *[0.5] * 9, 20]
    assert len(file.layers) == 50_000


@pytest.mark.parametrize(
    ("patterns", "alpha"),
    [
        ({"to_q": 1, "a.to_q": 2}, 1),  # the first that fits, not the longest
        ({"a.to_q": 2, "to_q": 1}, 2),
        ({"o_q": 1}, 7),
        ({"x.a.to_q": 1}, 7),
        ({"": 1, "to_q.": 2}, 7),
        ({"unet.a.to_q": 1, "a": 2}, 7),
        ({"to_q": None}, None),
    ],
)
def test_the_first_pattern_that_ends_a_name_is_its_alpha(tmp_path, patterns, alpha):
    metadata = {"unet.alpha_pattern": patterns, "unet.lora_alpha": 7}
    factors = {"unet.a.to_q.lora_A.weight": (2, 4), "unet.a.to_q.lora_B.weight": (4, 2)}
    save_file(
        {key: torch.ones(shape) for key, shape in factors.items()},
        tmp_path / "x.safetensors",
        metadata={"lora_adapter_metadata": json.dumps(metadata)},
    )
    (layer,) = read_lora(tmp_path / "x.safetensors").layers
    assert layer.alpha == alpha
