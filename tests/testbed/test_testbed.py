"""The embedded testbed: complete, offline, small, and it shows what its LoRAs promise."""

import json

import numpy as np
import pytest
import torch
from cmlora_fast import testbed
from cmlora_fast.testbed.evaluate import GUIDANCE, STEPS, generate, passes
from cmlora_fast.testbed.load import DATA
from safetensors import safe_open

MAX_BYTES = 30_000_000  # the package data may not grow beyond this
RECORD = json.loads((DATA / "acceptance.json").read_text())


@pytest.fixture(scope="module")
def pipe():
    """The pipeline with all ten LoRAs; loading must not touch the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.socket.connect", _no_network)
        pipe = testbed.load_pipeline()
        testbed.load_loras(pipe)
    return pipe


def _no_network(*_):
    raise AssertionError("the testbed tried to reach the network")


def _lora_keys(path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_the_data_is_small():
    assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) < MAX_BYTES


def test_the_lora_info_has_two_of_each_category_with_trigger_words():
    info = json.loads((DATA / "lora_info.json").read_text())
    assert info == testbed.lora_info()
    assert list(info) == ["character", "clothing", "style", "background", "object"]
    for category, records in info.items():
        assert [r["id"] for r in records] == [f"{category}_1", f"{category}_2"]
        assert all(r["trigger"] and r["name"] and r["url"] for r in records)
        assert all(testbed.lora_path(r["id"]).exists() for r in records)


def test_a_prompt_calls_every_concept_within_the_text_length(pipe):
    five = [c + "_1" for c in testbed.CATEGORIES]
    text = testbed.prompt(five)
    triggers = [t for c in testbed.CATEGORIES for t in testbed.lora_info()[c][0]["trigger"]]
    assert all(t in text for t in triggers)
    assert len(pipe.tokenizer(text).input_ids) <= pipe.tokenizer.model_max_length


def test_unknown_ids_are_named():
    with pytest.raises(ValueError, match=r"prompt: expected ids among.*hat_1"):
        testbed.prompt(["hat_1"])
    with pytest.raises(ValueError, match=r"lora_path: expected one of.*'hat_1'"):
        testbed.lora_path("hat_1")


def test_the_unet_has_the_block_types_of_sd15(pipe):
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    assert list(pipe.unet.config.down_block_types) == [cross[0]] * 3 + ["DownBlock2D"]
    assert list(pipe.unet.config.up_block_types) == ["UpBlock2D"] + [cross[1]] * 3


@pytest.mark.parametrize("id", testbed.IDS)
def test_every_key_of_a_lora_is_loaded(pipe, id):
    path = testbed.lora_path(id)
    loaded = {
        name
        for model in (pipe.unet, pipe.text_encoder)
        for name, p in model.named_parameters()
        if f".{id}." in name and p.abs().sum() > 0
    }
    assert len(loaded) == len(_lora_keys(path))


def test_the_loras_differ_in_rank_scale_and_targets():
    kinds = set()
    for id in testbed.IDS:
        keys = _lora_keys(testbed.lora_path(id))
        for kind in ("to_q", "conv1", "proj_in", "ff.net", "text_encoder"):
            kinds |= {kind for k in keys if kind in k}
    assert kinds == {"to_q", "conv1", "proj_in", "ff.net", "text_encoder"}


@pytest.mark.parametrize("id", testbed.IDS[::3])  # four categories; all ten are in the table
def test_the_scorer_finds_a_lora_and_not_its_absence(pipe, id):
    """Three seeds of the committed table, drawn again; the table itself covers 32."""
    seeds = range(3)
    scorer = testbed.Scorer()
    pipe.set_adapters([id])
    shown = [s[id] > 0.5 for s in scorer.score(generate(pipe, testbed.prompt([id]), seeds))]
    pipe.disable_lora()
    bare = [s[id] > 0.5 for s in scorer.score(generate(pipe, testbed.prompt([id]), seeds))]
    pipe.enable_lora()
    assert sum(shown) >= 2 and sum(bare) <= 1


def test_the_recorded_acceptance_table_passes():
    assert set(RECORD["found"]) == set(testbed.IDS)
    assert (RECORD["seeds"], RECORD["steps"], RECORD["guidance_scale"]) == (32, STEPS, GUIDANCE)
    assert all(passes(row) for row in RECORD["found"].values()), RECORD["found"]


def test_an_image_is_64_by_64_and_repeats_with_its_seed(pipe):
    pipe.disable_lora()
    first, second = (generate(pipe, testbed.prompt([]), range(1))[0] for _ in range(2))
    pipe.enable_lora()
    assert first.size == (64, 64)
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert np.asarray(first).std() > 20  # a picture, not a flat colour


def test_the_scorer_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"Scorer: expected 8-bit images.*\(32, 32, 3\)"):
        testbed.Scorer().score([np.zeros((32, 32, 3), np.uint8)])
    assert testbed.Scorer().score([]) == []


def test_half_precision_weights_load_as_asked():
    assert testbed.load_pipeline(torch.bfloat16).unet.dtype == torch.bfloat16
