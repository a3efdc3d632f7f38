"""ComposLoRA's files: combinations, info files and prompts, good ones and broken ones."""

import json
import re
import time
from types import SimpleNamespace

import pytest
from cmlora_fast import eval as lab
from cmlora_fast.eval.lora_info import key_lines
from cmlora_fast.eval.presets import PRESETS, read_prompts

COUNTS = {"character": 3, "clothing": 2, "style": 2, "background": 2, "object": 2}
INFO = {
    category: [
        {"id": f"{category}_{n}", "name": f"{category} {n}", "trigger": ["a", f"{n}"], "url": ""}
        for n in range(1, count + 1)
    ]
    for category, count in COUNTS.items()
}
CODE = """
def get_prompt(image_style):
    if image_style == 'anime':
        prompt = "drawn"
        negative_prompt = "photo"
    else:
        prompt = "RAW photo"
        negative_prompt = "drawn"
    return prompt, negative_prompt
raise SystemExit("never run")
"""


@pytest.fixture
def folder(tmp_path):
    """A copy of ComposLoRA without its weights."""
    (tmp_path / "anime_lora_info.json").write_text(json.dumps(INFO, indent=2))
    (tmp_path / "utils.py").write_text(CODE)
    (tmp_path / "models" / "lora" / "anime").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("n", "count"), [(1, 11), (2, 24), (3, 72), (4, 96), (5, 48)])
def test_counts_of_the_published_testbed(n, count):
    found = lab.generate_combinations(INFO, n)
    assert len(found) == len({tuple(e["id"] for e in c) for c in found}) == count
    assert all(len(c) == n for c in found)


def test_order_of_the_combinations():
    pairs = [tuple(e["id"] for e in c) for c in lab.generate_combinations(INFO, 2)]
    assert pairs[:3] == [
        ("character_1", "clothing_1"),
        ("character_1", "clothing_2"),
        ("character_2", "clothing_1"),
    ]
    assert pairs[-1] == ("character_3", "object_2")


def test_without_characters_there_is_nothing_to_compose():
    assert lab.generate_combinations({"style": INFO["style"], "object": INFO["object"]}, 2) == []


@pytest.mark.parametrize("n", [0, 6, 2.0, True])
def test_n_out_of_range(n):
    with pytest.raises(ValueError, match=r"n: expected an int from 1 to 5.*; got"):
        lab.generate_combinations(INFO, n)


def test_slices_of_the_combinations_are_disjoint():
    numbers = list(range(24))
    first, second = lab.sample(numbers, "8"), lab.sample(numbers, "8:16")
    assert len(first) == len(second) == 8 and not set(first) & set(second)
    assert first == lab.sample(numbers, ":8") != numbers[:8]
    assert lab.sample(numbers, "all") == numbers
    for wrong in ("eight", "-1", "24:", "0"):
        with pytest.raises(ValueError, match="combinations: "):
            lab.sample(numbers, wrong)


def test_composlora_is_read(folder):
    bed = lab.composlora(folder, "anime")
    assert [e.id for e in bed.info["background"]] == ["background_1", "background_2"]
    assert bed.paths["style_2"] == folder / "models" / "lora" / "anime" / "style_2.safetensors"
    assert bed.prompt(bed.info["character"][:1]) == "drawn, a, 1"
    assert bed.negative_prompt == "photo"
    given = lab.composlora(folder, "anime", prompt="mine", negative="")
    assert (given.base_prompt, given.negative_prompt) == ("mine", "")


def test_prompts_are_read_without_running_the_code(folder, tmp_path):
    assert read_prompts(folder / "utils.py", "reality") == ("RAW photo", "drawn")
    (tmp_path / "empty.py").write_text("x = 1")
    for name, message in (("empty.py", "no get_prompt"), ("none.py", "no prompts to read")):
        with pytest.raises(ValueError, match=f"{message}.*give the base prompt"):
            read_prompts(tmp_path / name, "anime")


def test_presets_are_those_of_the_paper():
    anime, reality = PRESETS["anime"], PRESETS["reality"]
    assert (anime.steps, anime.guidance_scale, anime.height, anime.width) == (200, 10, 512, 512)
    assert (reality.steps, reality.guidance_scale) == (100, 7)
    assert (reality.height, reality.width, reality.lora_scale) == (1024, 768, 0.8)


@pytest.mark.parametrize(
    ("before", "after", "key", "message"),
    [
        ('"id": "style_2"', '"id": "style"', r"style\[1\]\.id", "pattern"),
        ('"id": "style_2"', '"id": "object_9"', r"style\[1\]\.id", "expected style_<n>"),
        ('"id": "style_2"', '"id": "style_1"', r"style\[1\]\.id", "is there twice"),
        ('"name": "object 1"', '"name": 3', r"object\[0\]\.name", "valid string"),
        ('"name": "object 1",', "", r"object\[0\]\.name", "is missing"),
    ],
)
def test_a_malformed_info_file_is_told_by_key_and_line(folder, before, after, key, message):
    path = folder / "anime_lora_info.json"
    text = path.read_text().replace(before, after)
    path.write_text(text)
    where = rf"anime_lora_info.json, line (\d+): {key}: .*{message}"
    with pytest.raises(ValueError, match=where) as caught:
        lab.read_lora_info(path)
    line = int(re.search(where, str(caught.value))[1])
    if after:  # where it is, else where the record begins
        assert after in text.splitlines()[line - 1]
    else:
        assert '"id": "object_1"' in text.splitlines()[line]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n\n", "line 3: not JSON"),
        ("[]", "line 1: the whole: .*dictionary"),
        ("{}", "holds no LoRA"),
        ('{"style":\n [{"id": "style_1", "name": "x", "trigger": []}]}', r"line 2: style\[0\]"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "info.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        lab.read_lora_info(path)
    with pytest.raises(ValueError, match="cannot be read"):
        lab.read_lora_info(tmp_path / "missing.json")


def test_lines_of_keys():
    text = '{"a": [1, {"b\\"": "}\\n"}],\n "c"\n: {}, "d": [\n[2,\n3]]}'
    lines = key_lines(text)
    assert lines[("a", 1, 'b"')] == 1 and lines[("c",)] == 2
    assert lines[("d", 0, 1)] == 5


def test_a_folder_that_lacks_something(tmp_path, folder):
    with pytest.raises(ValueError, match="expected 'embedded' or a folder"):
        lab.composlora(tmp_path / "none", "anime")
    (folder / "models" / "lora" / "anime").rmdir()
    with pytest.raises(ValueError, match="no LoRA files: expected one of"):
        lab.composlora(folder, "anime")


@pytest.mark.parametrize("style", ["anime", "reality"])
def test_the_embedded_testbed_has_the_same_form(style):
    bed = lab.embedded(style)
    entries = [entry for entries in bed.info.values() for entry in entries]
    assert all(bed.paths[entry.id].is_file() for entry in entries)
    assert bed.prompt([SimpleNamespace(trigger=("x", "y"))]) == f"{bed.base_prompt}, x, y"
    counts = [len(lab.generate_combinations(bed.info, n)) for n in range(1, 6)]
    assert counts == [11, 24, 72, 96, 48]


def _many(tmp_path):
    entries = [
        {"id": f"style_{n}", "name": f"style {n}", "trigger": ["ink"], "url": ""}
        for n in range(10_000)
    ]
    path = tmp_path / "info.json"
    path.write_text(json.dumps({"style": entries}, indent=0))
    return path


def test_ten_thousand_loras_are_read_in_linear_time(tmp_path):
    path = _many(tmp_path)
    began = time.perf_counter()
    assert len(lab.read_lora_info(path)["style"]) == 10_000
    text = path.read_text()
    path.write_text(text.replace('"id": "style_9999"', '"id": "style_0"'))
    with pytest.raises(ValueError, match=r"info.json, line 79996: style\[9999\]\.id: .*twice"):
        lab.read_lora_info(path)
    assert time.perf_counter() - began < 5  # 0.5 s; by the square 30 s each


@pytest.mark.parametrize("opening", ["[", '{"a":', '{"style": [', '{"style": [{"id": '])
@pytest.mark.parametrize("depth", [5, 100, *range(900, 1000, 7), 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_nested_info_files_are_refused_by_name(tmp_path, opening, depth, closed):
    path = tmp_path / "info.json"
    closing = "".join({"[": "]", "{": "}"}.get(x, "") for x in reversed(opening))
    path.write_text(opening * depth + "1" + closing * depth * closed)
    with pytest.raises(ValueError, match=r"info\.json(, line 1)?: ") as caught:
        lab.read_lora_info(path)
    assert len(str(caught.value)) < 400


def test_a_number_of_5000_digits_is_refused_by_name(tmp_path):
    (tmp_path / "info.json").write_text(f'{{"style": {"9" * 5000}}}')
    with pytest.raises(ValueError, match=r"info\.json: not JSON"):
        lab.read_lora_info(tmp_path / "info.json")


@pytest.mark.parametrize(
    "code", ["(" * 10_000, "-" * 100_000 + "1", "x = '\0'", "x = (", "a." * 9_999]
)
def test_code_that_cannot_be_parsed_is_refused_by_name(tmp_path, code):
    (tmp_path / "utils.py").write_text(code)
    with pytest.raises(ValueError, match=r"utils\.py: no prompts to read"):
        read_prompts(tmp_path / "utils.py", "anime")
