"""The embedded testbed: complete, offline, small, and it shows what its LoRAs promise."""

import json

import numpy as np
import pytest
import torch
from cmlora_fast import testbed
from cmlora_fast.testbed.concepts import BY_KEY
from cmlora_fast.testbed.load import DATA
from cmlora_fast.testbed.training.evaluate import (
    CHOICE_SEEDS,
    SEEDS,
    STEPS,
    generate,
    passes,
)
from safetensors import safe_open

MAX_BYTES = 45_000_000  # the package data may not grow beyond this
RECORD = json.loads((DATA / "acceptance.json").read_text())
ACCURACY = json.loads((DATA / "accuracy.json").read_text())
KEYS = tuple(BY_KEY)


@pytest.fixture(scope="module")
def pipe():
    """The pipeline with all LoRAs, adapter name = style.id; loading must not touch the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.socket.connect", _no_network)
        pipe = testbed.load_pipeline()
        for key in KEYS:
            path = testbed.lora_path(*_id_and_style(key))
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=_name(key))
    return pipe


def _id_and_style(key: str) -> tuple[str, str]:
    style, id = key.split("/")
    return id, style


def _name(key: str) -> str:
    return key.replace("/", "_")


def _no_network(*_):
    raise AssertionError("the testbed tried to reach the network")


def _lora_keys(path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def test_the_data_is_small():
    assert sum(f.stat().st_size for f in DATA.rglob("*") if f.is_file()) < MAX_BYTES


@pytest.mark.parametrize("style", testbed.STYLES)
def test_the_lora_info_has_eleven_loras_with_trigger_words(style):
    info = json.loads((DATA / f"{style}_lora_info.json").read_text())
    assert info == testbed.lora_info(style)
    assert {category: len(records) for category, records in info.items()} == {
        "character": 3,
        "clothing": 2,
        "style": 2,
        "background": 2,
        "object": 2,
    }
    for category, records in info.items():
        assert [r["id"] for r in records] == [f"{category}_{n + 1}" for n in range(len(records))]
        assert all(r["trigger"] and r["name"] and r["url"] for r in records)
        assert all(testbed.lora_path(r["id"], style).exists() for r in records)


def test_no_two_concepts_share_a_name_or_trigger_words():
    concepts = BY_KEY.values()
    assert len({c.name for c in concepts}) == len({c.trigger for c in concepts}) == 22


@pytest.mark.parametrize("style", testbed.STYLES)
def test_a_prompt_calls_every_concept_within_the_text_length(pipe, style):
    info = testbed.lora_info(style)
    for n in range(3):
        records = [group[min(n, len(group) - 1)] for group in info.values()]
        text = testbed.prompt([r["id"] for r in records], style)
        assert all(t in text for r in records for t in r["trigger"])
        assert len(pipe.tokenizer(text).input_ids) <= pipe.tokenizer.model_max_length


def test_unknown_ids_and_styles_are_named():
    with pytest.raises(ValueError, match=r"prompt: expected ids among.*hat_1"):
        testbed.prompt(["hat_1"])
    with pytest.raises(ValueError, match=r"lora_path: expected one of.*'hat_1'"):
        testbed.lora_path("hat_1", "reality")
    for call in (testbed.prompt, testbed.load_loras):
        with pytest.raises(ValueError, match=r"style: expected one of anime, reality; got 'noir'"):
            call(["style_1"], style="noir")
    with pytest.raises(ValueError, match=r"style: expected one of anime, reality; got 'noir'"):
        testbed.Scorer().score([], "noir")


def test_the_unet_has_the_block_types_of_sd15(pipe):
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    assert list(pipe.unet.config.down_block_types) == [cross[0]] * 3 + ["DownBlock2D"]
    assert list(pipe.unet.config.up_block_types) == ["UpBlock2D"] + [cross[1]] * 3


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_a_lora_is_loaded(pipe, key):
    path = testbed.lora_path(*_id_and_style(key))
    loaded = {
        name
        for model in (pipe.unet, pipe.text_encoder)
        for name, p in model.named_parameters()
        if f".{_name(key)}." in name and p.abs().sum() > 0
    }
    assert len(loaded) == len(_lora_keys(path))


@pytest.mark.parametrize("style", testbed.STYLES)
def test_the_loras_differ_in_rank_scale_and_targets(style):
    kinds = set()
    for id in testbed.IDS:
        keys = _lora_keys(testbed.lora_path(id, style))
        for kind in ("to_q", "conv1", "proj_in", "ff.net", "text_encoder"):
            kinds |= {kind for k in keys if kind in k}
    assert kinds == {"to_q", "conv1", "proj_in", "ff.net", "text_encoder"}


@pytest.mark.parametrize("key", KEYS[::3])  # the table has all
def test_the_scorer_finds_a_lora_and_not_its_absence(pipe, key):
    """Three seeds of the committed table, drawn again; the table itself covers 16."""
    id, style = _id_and_style(key)
    scorer, text, seeds = testbed.Scorer(), testbed.prompt([id], style), SEEDS[:3]
    pipe.set_adapters([_name(key)])
    shown = [s[id] > 0.5 for s in scorer.score(generate(pipe, text, seeds), style)]
    pipe.disable_lora()
    bare = [s[id] > 0.5 for s in scorer.score(generate(pipe, text, seeds), style)]
    pipe.enable_lora()
    assert sum(shown) >= 2 and sum(bare) <= 1


def test_the_acceptance_table_is_complete_and_on_fresh_seeds():
    assert set(RECORD["found"]) == set(KEYS)
    assert (RECORD["steps"], RECORD["guidance_scale"]) == (STEPS, testbed.GUIDANCE)
    assert RECORD["seeds"] == [SEEDS[0], SEEDS[-1]] and len(SEEDS) == 16
    assert not set(SEEDS) & set(CHOICE_SEEDS)


@pytest.mark.parametrize("key", KEYS)
def test_the_recorded_acceptance_table_passes(key):
    assert passes(RECORD["found"][key])


def test_the_recorded_scorer_tells_the_concepts_apart_on_held_out_drawings():
    assert set(ACCURACY) == set(KEYS)
    assert all(row["recognised"] >= 0.95 for row in ACCURACY.values()), ACCURACY
    assert all(row["mistaken"] <= 0.01 for row in ACCURACY.values()), ACCURACY


def test_the_scorer_gives_each_category_one_distribution_over_both_styles():
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    anime, reality = (testbed.Scorer().score(images, style) for style in testbed.STYLES)
    for one, other in zip(anime, reality, strict=True):
        assert list(one) == list(other) == list(testbed.IDS)
        for category in testbed.CATEGORIES:
            total = sum(s[i] for s in (one, other) for i in s if i.startswith(category))
            assert 0 <= total <= 1 + 1e-5


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
