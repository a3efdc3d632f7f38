"""What ``cmlora analyze`` computes, against values worked out by hand and the spec's table."""

import cmlora_fast as cf
import numpy as np
import pytest
import torch
from cmlora_fast.eval.difference import difference
from cmlora_fast.eval.frequency import FrequencyProfile, partition_by_gap, profile_order
from cmlora_fast.eval.macs import SD15, count_unet, macs_per_sample
from cmlora_fast.eval.similarity import alike, similarity
from cmlora_fast.eval.timeline import lanes
from PIL import Image

from ..support import adapters, helpers

GIGA = 1e9


@pytest.mark.parametrize(
    ("place", "full", "shallow"),
    [({"cache_block_id": 1}, 401.6, 152.7), ({"cache_block_id": 0}, 401.6, 90.1)],
)
def test_macs_of_sd15_are_those_of_the_spec(place, full, shallow):
    counted = macs_per_sample(SD15, 512, 512, cf.Merge(**place))
    assert counted["full"] / GIGA == pytest.approx(full, rel=0.005)
    assert counted["shallow"] / GIGA == pytest.approx(shallow, rel=0.005)


def test_macs_are_counted_call_by_call():
    pipe = helpers.pipeline("sd", "one_layer")
    size = pipe.unet.config.sample_size * 8
    given = {"num_inference_steps": 8, "output_type": "latent", "height": size, "width": size}
    cf.enable(pipe, cf.Merge(cache_interval=4), backend="torch")
    with count_unet(pipe.unet) as counts:
        pipe(helpers.PROMPT, guidance_scale=1.0, **given)
    cf.disable(pipe)
    assert len(counts) == 8 and not pipe.unet._forward_hooks
    assert counts[1] == counts[2] == counts[3] < counts[4] < counts[0]  # text keys: step 0 alone
    expected = macs_per_sample(dict(pipe.unet.config), size, size)
    assert (counts[0], counts[1]) == (expected["full"], expected["shallow"])


def test_sdxl_is_refused():
    with pytest.raises(ValueError, match="a UNet that takes text and nothing more"):
        macs_per_sample({"addition_embed_type": "text_time"}, 64, 64)


@pytest.mark.parametrize(
    ("added", "order", "low"),
    [
        ({"a": 0.1, "b": 0.5, "c": 0.4}, ("b", "c", "a"), ("a",)),
        ({"a": -0.1, "b": 0.5, "c": 0.0}, ("b", "c", "a"), ("c", "a")),
        ({"a": 0.1, "b": 0.2}, ("b", "a"), ("a",)),
        ({"a": 0.1}, ("a",), ()),
    ],
)
def test_partition_at_the_widest_gap(added, order, low):
    assert partition_by_gap(added) == (order, low)


@pytest.fixture
def pipe():
    pipe = helpers.pipeline("sd", "one_layer")
    adapters.add_many(pipe, ["character_1", "background_1"])
    return pipe


def test_profiles_are_measured_saved_and_used(pipe, tmp_path):
    def paint(prompt, seed):
        pipe(
            prompt,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )

    weights = {"character_1": 1.0, "background_1": 0.5}
    profile = profile_order(pipe, weights, ["a", "b"], paint, seeds=(0, 1))
    assert set(profile.order) == set(weights) and len(profile.low_frequency) == 1
    assert profile.order[-1:] == profile.low_frequency
    assert list(profile.amplitude) == ["__base__", *weights]
    for name in weights:
        gap = np.mean(profile.amplitude[name]) - np.mean(profile.amplitude["__base__"])
        assert profile.added[name] == pytest.approx(gap)
    assert np.shape(profile.profiles["character_1"])[0] == 3
    profile.save(tmp_path / "profile.json")
    loaded = FrequencyProfile.load(tmp_path / "profile.json")
    assert loaded == profile
    assert cf.CMLoRA(low_frequency=loaded.low_frequency).low_frequency == profile.low_frequency
    pipe.disable_lora()
    with cf.accelerate(pipe, None, record=True):
        paint("a", 0)
        alone = [step.amplitude for step in cf.summary(pipe).steps]
        paint("b", 0)
    again = profile_order(pipe, {"character_1": 1.0}, ["a"], paint)
    assert again.amplitude["__base__"] == pytest.approx(alone)


def test_broken_profiles_and_nothing_to_measure(pipe, tmp_path):
    path = tmp_path / "profile.json"
    for text in ("{", "[]", '{"order": []}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"profile.json: not a frequency profile"):
            FrequencyProfile.load(path)
    with pytest.raises(ValueError, match="at least one adapter"):
        profile_order(pipe, {}, ["a"], lambda prompt, seed: None)


def test_similarity_of_known_features():
    x, y = torch.zeros(2, 1, 2, 1, 1)
    x[0, 0], y[0, 1] = 3.0, 5.0
    cosines = similarity(torch.stack([x, 2 * x, y, x + 0.1 * y]))
    assert torch.allclose(cosines[:3, :3], torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]))
    assert alike(cosines) == pytest.approx([1, 0, 2 / 3])


def test_lanes_follow_the_records():
    steps = [
        cf.StepRecord(0, 9, dominant="a", early=True, refreshed=("a", "b"), weights={"a": 1.0}),
        cf.StepRecord(1, 6, dominant="a", early=True),
        cf.StepRecord(2, 3, dominant="b", early=False, refreshed=("b",), weights={"b": 0.6}),
    ]
    told = lanes(cf.Summary(adapters=("a", "b"), steps=steps))
    assert told["adapters"]["a"] == {
        "full": [True, False, False],
        "age": [0, 1, 2],
        "weight": [1.0, 0.0, 0.0],
    }
    assert told["adapters"]["b"]["age"] == [0, 1, 0]
    assert told["dominant"] == ["a", "a", "b"] and told["early"] == [True, True, False]


def test_differences():
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 200, (32, 32, 3), dtype=np.uint8)
    one, brighter = Image.fromarray(pixels), Image.fromarray(pixels + 10)
    found = difference(brighter, one)
    assert found.numbers["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert found.numbers["mean_absolute"] == found.numbers["largest"] == 10
    assert found.high_pass.max() < 1e-3 < found.absolute.min()  # brightness is low frequency
    ripple = pixels.copy()
    ripple[:, ::2] += 10
    assert difference(Image.fromarray(ripple), one).high_pass.mean() == pytest.approx(5, abs=0.01)
    assert difference(one, one).numbers["psnr"] is None
    with pytest.raises(ValueError, match="expected equal sizes"):
        difference(one, one.resize((16, 16)))
