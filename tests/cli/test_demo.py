import json

import cmlora_fast as cf
import pytest
from cmlora_fast.cli import demo_run
from cmlora_fast.cli.demo_run import Subject, pictures_of
from cmlora_fast.cli.sheet import CELL, Tile, contact_sheet
from PIL import Image

from ..support import adapters, helpers

LABELS = {"character_1": "A fox", "background_1": "Bamboo"}
KEYS = ["no_lora", *LABELS, "merge", "switch", "composite"]
KEYS += ["cmlora_offline", "cmlora_online", "cmlora_async", "clora"]
CONCEPTS = (cf.Concept("character_1", "fox"), cf.Concept("background_1", "coat"))
SUBJECT = Subject(LABELS, helpers.PROMPT, helpers.NEGATIVE, concepts=CONCEPTS)


@pytest.fixture
def subject(monkeypatch):
    """The demo on a tiny random pipeline in place of the embedded one."""
    pipe = helpers.pipeline("sd", "one_layer")
    adapters.add_many(pipe, list(LABELS))
    made = pipe, SUBJECT
    monkeypatch.setattr(demo_run, "embedded_subject", lambda: made)
    return made


def test_demo_paints_every_method(cmlora, subject, tmp_path):
    code, out, err = cmlora("demo", "--out", tmp_path, "--steps", 3, "--seed", 2, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((tmp_path / "demo.json").read_text())
    assert [cell["key"] for cell in report["cells"]] == KEYS
    assert report["arguments"] == {"out": str(tmp_path), "steps": 3, "seed": 2}
    rows = {cell["key"]: (cell["full"], cell["shallow"]) for cell in report["cells"]}
    assert rows["no_lora"] == rows["merge"] == rows["switch"] == (6, 0)  # 3 steps, 2 halves
    assert rows["composite"] == (12, 0)
    assert rows["clora"] == (18, 0)  # and a base row
    assert rows["cmlora_offline"][1] > 0
    weights = {cell["key"]: cell["weight"] for cell in report["cells"]}
    assert weights["character_1"] == 1
    assert weights["merge"] == cf.recommended_weights("merge", 2) < 1
    assert weights["composite"] == cf.recommended_weights("composite", 2) > 1
    assert {cell["shown"] for cell in report["cells"]} == {None}  # nobody can tell here
    images = {key: (tmp_path / "images" / f"{key}.png").read_bytes() for key in KEYS}
    assert len(set(images.values())) >= len(KEYS) - 2  # stages may agree on so few steps
    with Image.open(report["sheet"]) as sheet:
        assert sheet.width > 5 * CELL * 0.9 and sheet.height > 2 * CELL * 0.9


def test_demo_prints_a_table_and_replaces_its_own_files(cmlora, subject, tmp_path):
    for _ in range(2):
        code, out, _ = cmlora("demo", "--out", tmp_path, "--steps", 1)
        assert code == 0
    assert "CMLoRA online" in out and out.splitlines()[-1] == str(tmp_path / "contact_sheet.png")
    assert len(list((tmp_path / "images").iterdir())) == len(KEYS)


def test_the_pipeline_is_as_before(subject, tmp_path):
    pipe, given = subject
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    demo_run.paint_demo(pipe, given, out=tmp_path, steps=1, seed=0)
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all((value == after[name]).all() for name, value in before.items())


def test_pictures_are_a_list_of_what_to_paint():
    pictures = pictures_of(SUBJECT)
    assert [picture.key for picture in pictures] == KEYS
    assert pictures[0].adapters == () and pictures[1].adapters == ("character_1",)
    assert all(picture.adapters == tuple(LABELS) for picture in pictures[3:])


def test_sheet_layout():
    red, blue = (255, 0, 0), (0, 0, 255)
    colours = [red, blue, red]
    tiles = [Tile(f"tile {i}", Image.new("RGB", (64, 64), c)) for i, c in enumerate(colours)]
    sheet = contact_sheet(tiles, "a title", columns=2, cell=200)
    found = [sheet.getpixel((x, y)) for y in range(sheet.height) for x in range(sheet.width)]
    grown = (3 * 64) ** 2  # by a whole factor: 200 // 64
    assert (found.count(red), found.count(blue)) == (2 * grown, grown)
    assert sheet.width == 14 + 2 * (3 * 64 + 14)


def test_sheet_keeps_long_words_inside():
    tile = Tile("a label that is much longer than the picture is wide", Image.new("RGB", (64, 64)))
    plain = contact_sheet([Tile("x", tile.image)], "x")
    titled = contact_sheet([tile], "a very long prompt " * 12)
    assert titled.width == plain.width and titled.height > plain.height
    right = titled.crop((titled.width - 5, 0, titled.width, titled.height))
    assert right.getcolors() == [(right.width * right.height, (255, 255, 255))]


def test_large_images_keep_their_size():
    sheet = contact_sheet([Tile("x", Image.new("RGB", (300, 400)))], "x")
    assert sheet.width == 300 + 2 * 14


def test_no_tile_is_an_error():
    with pytest.raises(ValueError, match="at least one tile"):
        contact_sheet([], "x")
