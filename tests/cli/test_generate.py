import json

import pytest
from cmlora_fast.cli.images import save_png
from cmlora_fast.cli.lora_files import parse_specs
from PIL import Image

SIZE = ["--height", 64, "--width", 64, "--steps", 3]


def read_parameters(path):
    with Image.open(path) as image:
        return json.loads(image.info["parameters"])


@pytest.fixture
def paint(cmlora, model, tmp_path):
    def run(*options, out="image.png"):
        head = ["generate", "--model", model, "-p", "a fox", *SIZE]
        return cmlora(*head, "--out", tmp_path / out, *options)

    return run


def two_loras(loras):
    return ["--lora", f"{loras['character_1']}:0.7", "--lora", loras["background_1"]]


def test_png_holds_all_parameters(paint, loras, tmp_path):
    options = [*two_loras(loras), "--method", "cmlora", "--method-option", "cache_interval=2"]
    code, out, err = paint(*options, "--seed", 5, "--scheduler", "euler", "--negative", "bad")
    assert code == 0, err
    assert out.splitlines()[0] == str(tmp_path / "image.png")
    parameters = read_parameters(tmp_path / "image.png")
    assert parameters["prompt"] == "a fox" and parameters["negative"] == "bad"
    assert parameters["method"] == "cmlora" and parameters["method_option"] == ["cache_interval=2"]
    assert (parameters["seed"], parameters["steps"], parameters["scheduler"]) == (5, 3, "euler")
    assert (parameters["width"], parameters["height"]) == (64, 64)
    assert [(x["name"], x["weight"]) for x in parameters["loras"]] == [
        ("character_1", 0.7),
        ("background_1", 1.0),
    ]
    assert b"tEXtparameters" in (tmp_path / "image.png").read_bytes()
    assert "warning: 3 steps with feature caching" in err  # ours is shown, in one line


def test_json_is_one_document_with_what_ran(paint, loras):
    code, out, err = paint(*two_loras(loras), "--method", "composite", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["command"] == "generate" and report["arguments"]["method"] == "composite"
    assert report["machine"]["cores"] and report["versions"]["torch"]
    assert report["summary"]["adapters"] == ["character_1", "background_1"]
    assert len(report["summary"]["steps"]) == 3
    assert report["seconds"] > 0


def test_nothing_is_overwritten(tmp_path):
    image = Image.new("RGB", (8, 8))
    names = [save_png(image, tmp_path / "new" / "x.png", {"i": i}).name for i in range(3)]
    assert names == ["x.png", "x-1.png", "x-2.png"]
    assert [read_parameters(tmp_path / "new" / name)["i"] for name in names] == [0, 1, 2]


def test_each_of_several_images_can_be_painted_alone(paint, loras, tmp_path):
    code, out, _ = paint(*two_loras(loras), "--num-images", 2, "--seed", 3, "--method", "switch")
    assert code == 0 and out.splitlines()[1].endswith("image-1.png")
    parameters = read_parameters(tmp_path / "image-1.png")
    assert (parameters["seed"], parameters["num_images"]) == (4, 1)
    code, *_ = paint(*two_loras(loras), "--seed", 4, "--method", "switch", out="alone.png")
    assert code == 0
    with Image.open(tmp_path / "image-1.png") as both, Image.open(tmp_path / "alone.png") as alone:
        pairs = zip(both.tobytes(), alone.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1  # a batch of two rounds differently


@pytest.mark.parametrize("method", ["none", "merge", "switch"])
def test_no_lora_is_no_error(paint, method):
    code, _, err = paint("--method", method)
    assert code == 0, err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--method", "blend"], "--method: expected one of none, merge, switch"),
        (["--method", "switch", "--method-option", "step=5"], "Switch has no field 'step'"),
        (
            ["--method", "switch", "--method-option", "switch_step=0"],
            "Switch.switch_step: expected",
        ),
        (["--method", "switch", "--method-option", "switch_step"], "expected key=value"),
        (["--method-option", "switch_step=5"], "--method none has no options"),
        (["--method", "cmlora", "--method-option", "low_frequency=x"], "low_frequency: expected"),
        (["--scheduler", "fast"], "--scheduler: expected one of ddim"),
        (["--height", "65"], "--height: expected a multiple of 8; got 65"),
        (["--dtype", "int8"], "--dtype: expected one of auto"),
        (["--device", "toaster"], "--device: expected auto"),
        (["--weights", "heavy"], "weights: expected one of"),
        (["--backend", "abacus"], "backend: expected one of"),
        (["--model", "/no/such/model"], "no such file or directory"),
        (["--model", "."], "holds no model_index.json"),
        (["--lora", "gone.safetensors:0.5"], "gone.safetensors: no such file"),
        (["--lora", "gone.safetensors:nan"], "expected a finite weight"),
        (["--lora", "character_1:strong"], "expected a weight, a number"),
    ],
)
def test_bad_arguments_are_one_line(paint, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = paint(*options)
    assert code == 1 and not out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


def test_out_must_be_a_png_file(paint, tmp_path):
    assert "ends in .png" in paint(out="image.jpg")[2]
    (tmp_path / "folder.png").mkdir()
    assert "is a directory" in paint(out="folder.png")[2]
    (tmp_path / "file").write_text("")
    assert "cannot make the folder" in paint(out="file/x.png")[2]


def test_a_long_prompt_is_told(paint):
    code, _, err = paint("-p", "bear " * 100)
    assert code == 0
    assert "warning: the prompt has 102 tokens; the text encoder reads the first 77" in err


def test_lora_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "v:2"
    odd.mkdir()
    (odd / "a:1").write_bytes(b"")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "pytorch_lora_weights.safetensors").write_bytes(b"")
    texts = ["x.y.safetensors:0.5", "b/x_y.safetensors", "C:\\x.safetensors:-1", f"{odd}/a:1"]
    specs = parse_specs([*texts, "saved:2"])
    assert [spec.weight for spec in specs] == [0.5, 1.0, -1.0, 1.0, 2.0]
    assert [spec.name for spec in specs][:2] == ["x_y", "x_y_2"]
    assert str(specs[2].path) == "C:\\x.safetensors"
    assert specs[3].path == odd / "a:1"
    assert specs[4].name == "saved"


def test_embedded_ids_stand_for_files():
    from cmlora_fast import testbed

    first, second = parse_specs(["character_1:0.8", "reality/style_2"], embedded=True)
    assert (first.name, first.path, first.weight) == (
        "character_1",
        testbed.lora_path("character_1"),
        0.8,
    )
    assert (second.name, second.path) == ("style_2", testbed.lora_path("style_2", "reality"))


CLORA = ["--method", "clora", "--prompt", "a fox and a coat"]
FOX, COAT = "character_1=fox:green", "background_1=coat"


def test_clora_takes_concepts_and_saves_maps(paint, loras, tmp_path):
    folder = tmp_path / "maps"
    options = [*CLORA, "--concept", FOX, "--concept", COAT, "--height", 128, "--width", 192]
    code, out, err = paint(*two_loras(loras), *options, "--save-maps", folder, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["filmstrip"] == str(folder / "filmstrip.png")
    assert [row["adapter"] for row in report["summary"]["rows"]] == [
        None,
        "character_1",
        "background_1",
    ]
    assert report["summary"]["rows"][1]["prompt"] == "a green fox and a coat"
    names = sorted(path.name for path in folder.iterdir())
    wanted = [f"{lora}_{kind}_{step:03}.png" for lora in ("background_1", "character_1")
              for kind in ("map", "mask") for step in range(3)]  # fmt: skip
    assert names == [*wanted, "filmstrip.png"]
    with Image.open(folder / wanted[0]) as overlay, Image.open(tmp_path / "image.png") as image:
        assert overlay.size == image.size == (192, 128)
        assert overlay.tobytes() != image.convert("RGB").tobytes()


def test_masks_from_files(paint, loras, tmp_path):
    picture = tmp_path / "left.png"
    left = Image.new("L", (8, 8))
    left.paste(255, (0, 0, 4, 8))
    left.save(picture)
    mask = ["--mask", f"character_1={picture}"]
    code, _, err = paint(*two_loras(loras), "--method", "composite", *mask)
    assert code == 0, err
    code, _, _ = paint(*two_loras(loras), "--method", "composite", out="plain.png")
    with Image.open(tmp_path / "image.png") as one, Image.open(tmp_path / "plain.png") as other:
        assert code == 0 and one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--method", "clora"], "expected --concept adapter=subject[:trigger]; got none"),
        ([*CLORA, "--concept", "fox"], "expected adapter=subject[:trigger]; got 'fox'"),
        ([*CLORA, "--concept", "character_1=bear"], "'bear' in the prompt"),
        ([*CLORA, "--concept", "bear=fox"], "expected an active adapter"),
        (["--concept", FOX], "only --method clora has concepts"),
        (["--save-maps", "maps"], "only --method clora has maps"),
        ([*CLORA, "--concept", FOX, "--method-option", "rows=[]"], "no field 'rows'"),
        (["--mask", "a=b.png"], "--method none has no masks"),
        (["--method", "merge", "--mask", f"a={__file__}"], "Merge has no masks"),
        (["--method", "composite", "--mask", __file__], "expected adapter=picture"),
        (["--method", "composite", "--mask", f"a={__file__}"], "cannot be read"),
        (["--method", "composite", "--mask", "a=no/such.png"], "No such file"),
    ],
)
def test_what_clora_and_masks_need_is_said(paint, loras, options, message):
    code, out, err = paint("--lora", loras["character_1"], *options)
    assert code == 1 and not out and message in err, err
