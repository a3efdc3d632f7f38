"""``cmlora analyze``: every picture with its data, and the numbers in the answer."""

import json
import re

import pytest
from cmlora_fast.eval.frequency import FrequencyProfile
from PIL import Image

IDS = ["character_1", "background_1"]
PARTS = ["profiles", "frequency", "similarity", "timeline", "difference", "macs"]


def test_analyze(cmlora, tmp_path):
    method = "cmlora(cache_interval=2,decay=frozen)"
    loras = [word for i in IDS for word in ("--lora", i)]
    code, out, err = cmlora(
        "analyze",
        *loras,
        "--method",
        method,
        "--steps",
        8,
        "--seeds",
        1,
        "--out",
        tmp_path,
        "--json",
    )
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((tmp_path / "analyze.json").read_text())
    assert [path.rpartition("/")[2] for path in report["pictures"]] == [f"{p}.png" for p in PARTS]
    for name in PARTS:
        assert json.loads((tmp_path / f"{name}.json").read_text())
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 700 and len(picture.convert("L").getcolors()) > 20
    profile = FrequencyProfile.load(tmp_path / "frequency_profile.json")
    assert list(profile.order) == report["frequency"]["order"]
    lane = json.loads((tmp_path / "timeline.json").read_text())["adapters"]
    assert lane["character_1"]["weight"][0] == pytest.approx(0.6)  # N = 2, frozen
    assert report["timeline"]["character_1"]["full_steps"] == sum(lane["character_1"]["full"])
    macs = report["macs"]["per_image"]
    assert macs["merge"] < macs[method] < macs["composite, uncached"]
    assert macs[f"{method}, uncached"] == macs["composite, uncached"]
    rows = report["macs"]["per_image_at"]["this model"]
    full = report["macs"]["per_sample"]["this model"]["full"]
    assert rows["merge"] == 2 * 8 * full and rows["composite, uncached"] == 2 * rows["merge"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "colours"], "--parts: expected some of frequency"),
        (["--method", "merge,cmlora"], "--method: expected one method"),
        (["--method", "no_lora"], "--method: expected one method"),
        (["--model", "somewhere/else"], "--prompt: expected a text"),
        (["--width", "20"], "--width: expected a multiple of 8"),
    ],
)
def test_mistakes(cmlora, tmp_path, arguments, message):
    code, out, err = cmlora("analyze", "--lora", "character_1", "--out", tmp_path, *arguments)
    assert code != 0 and out == "" and re.search(message, err), err


def test_a_method_without_cache_has_no_difference(cmlora, tmp_path):
    code, out, err = cmlora(
        *("analyze", "--lora", "character_1", "--method", "merge", "--parts", "difference"),
        *("--out", tmp_path, "--steps", 1),
    )
    assert code == 0, err
    assert "merge caches nothing" in out and not (tmp_path / "difference.png").exists()
