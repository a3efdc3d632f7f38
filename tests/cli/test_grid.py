"""``cmlora grid``: every cell is there once, labelled, and is not painted again."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

RUN = ["grid", "--lora", "character_1:0.5", "--lora", "style_1", "--set", "character_1"]
RUN += ["--set", "character_1+style_1", "--weight", "1,0.5", "--methods", "merge,composite"]
RUN += ["--interval", "1,2", "--seed", "7", "--steps", "2"]
COLUMNS = ["no LoRA", "merge k=1", "merge k=2", "composite k=1", "composite k=2"]
ROWS = [
    f"{names} · weight {weight} · seed 7"
    for names in ("character_1", "character_1 + style_1")
    for weight in ("1", "0.5")
]


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.sources, self.alts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.sources.append(given["src"])
            self.alts.append(given["alt"])


def test_grid(cmlora, tmp_path):
    code, out, err = cmlora(*RUN, "--out", tmp_path, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report == json.loads((tmp_path / "grid.json").read_text())
    assert [(c["row"], c["column"]) for c in report["cells"]] == [
        (row, column) for row in ROWS for column in COLUMNS
    ]
    assert all(c["seconds"] > 0 and 0 <= c["scores"]["recall"] <= 1 for c in report["cells"])
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    # Without LoRA the weight does not matter: 2 sets. The rest are all different.
    assert len(lines) == 2 + len(ROWS) * (len(COLUMNS) - 1)
    weights = {tuple(a["weight"] for a in line["job"]["adapters"]) for line in lines}
    assert weights == {(), (0.5,), (0.25,), (0.5, 1.0), (0.25, 0.5)}
    page = _Page((tmp_path / "grid.html").read_text())
    assert len(page.links) == len(report["cells"]) and page.alts[1] == f"merge k=1: {ROWS[0]}"
    assert all((tmp_path / link).is_file() for link in page.links)
    assert all(source.startswith("data:image/webp;base64,") for source in page.sources)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > len(COLUMNS) * 256 and picture.height > len(ROWS) * 256
    before = (tmp_path / "manifest.jsonl").read_bytes()
    code, again, _ = cmlora(*RUN, "--out", tmp_path, "--json")
    assert code == 0 and json.loads(again)["cells"] == report["cells"]
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "character_1+hat"], r"--set character_1\+hat: expected names among character_1"),
        (["--weight", "1,much"], "--weight: expected numbers such as"),
        (["--scorers", "lpips"], "--scorers: expected some of embedded, clip, reward"),
        (["--methods", "worst"], "--methods: expected some of"),
        (["--height", "13"], "--height: expected a multiple of 8"),
    ],
)
def test_mistakes(cmlora, tmp_path, arguments, message):
    code, out, err = cmlora("grid", "--lora", "character_1", "--out", tmp_path, *arguments)
    assert code != 0 and out == "" and re.search(message, err), err
    assert not (tmp_path / "images").exists()


def test_other_loras_need_a_prompt(cmlora, loras, tmp_path):
    code, _, err = cmlora("grid", "--lora", loras["character_1"], "--model", "x", "--out", tmp_path)
    assert code == 1 and "--prompt: expected a text" in err
