"""``cmlora eval`` on the embedded testbed: its answer, its files, and what a kill leaves."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cmlora_fast as cf
import pytest
from cmlora_fast.cli import main
from cmlora_fast.cli.method_list import cached, parse_methods

from ..support.judge import Stub, verdict

ARGUMENTS = ["--compose", "3", "--combinations", "2", "--seeds", "2", "--steps", "2"]
METHODS = [
    "no_lora",
    "merge",
    "cmlora(cache_interval=2,decay=frozen)",
    "clora(latent_update=false)",
]
RUN = ["eval", *ARGUMENTS, "--methods", ",".join(METHODS)]
JUDGE = ["--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "vlm"]  # nobody listens there
COUNT = 2 * 2 * len(METHODS)


def _manifest(folder):
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def _images(folder):
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody disturbed: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert main([*RUN, "--out", str(folder), "--json"]) == 0
    return folder


def test_the_answer(whole):
    report = json.loads((whole / "results.json").read_text())
    assert list(report["methods"]) == METHODS
    for method in report["methods"].values():
        assert 0 <= method["composition"] <= method["recall"] <= 1
        assert method["images"] == 4 and method["seconds_per_image"] > 0
        assert all(0 <= share <= 1 for share in method["concept_recall"].values())
        low, high = method["intervals"]["recall"]
        assert low <= method["recall"] <= high
    assert len(report["combinations"]) == 2
    assert {len(ids) for ids in report["combinations"]} == {3}
    pairs = [(c["a"], c["b"]) for c in report["comparisons"] if c["score"] == "recall"]
    assert pairs == [*itertools.combinations(METHODS, 2)]
    assert all(c["win"] + c["tie"] + c["loss"] == 4 for c in report["comparisons"])


def test_the_files(whole):
    manifest = _manifest(whole)
    assert len(manifest) == len(_images(whole)) == COUNT
    frozen = next(r for r in manifest if (r["job"]["method"] or {}).get("decay") == "frozen")
    assert frozen["job"]["method"]["cache_interval"] == 2 and frozen["shallow_rows"] > 0
    table = (whole / "results.csv").read_text().splitlines()
    assert len(table) == COUNT + 1 and table[0].startswith("method,combination,seed,image,seconds")
    page = (whole / "report.md").read_text()
    assert "| no_lora |" in page and "## Concepts" in page and "bootstrap" in page


def test_a_killed_run_resumes_to_the_same(cmlora, whole, tmp_path):
    code = "import sys; from cmlora_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *RUN, "--out", str(tmp_path)], stderr=subprocess.DEVNULL
    )
    manifest = tmp_path / "manifest.jsonl"
    until = time.monotonic() + 100
    while not manifest.exists() or manifest.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = manifest.read_text()
    lines = done.count("\n")
    assert 2 <= lines < COUNT
    code, out, err = cmlora(*RUN, "--out", tmp_path, "--json")
    assert code == 0, err
    assert manifest.read_text().startswith(done)  # nothing lost, nothing painted twice
    assert _manifest(tmp_path) == _manifest(whole)
    assert _images(tmp_path) == _images(whole)
    assert (
        json.loads(out)["comparisons"]
        == json.loads((whole / "results.json").read_text())["comparisons"]
    )


def test_a_judge_compares_the_first_method_with_the_others(cmlora, whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    stub = Stub([verdict((9, 5), (4, 5))] * 8)  # the image that stands first is better
    judge = ["--judge-url", stub.url, "--judge-model", "vlm", "--judge-prices", "1,2"]
    given = [*ARGUMENTS, "--methods", "merge,no_lora", *judge]
    code, out, err = cmlora("eval", *given, "--out", tmp_path, "--json")
    stub.server.shutdown()
    stub.server.server_close()
    assert code == 0, err
    report = json.loads(out)
    assert (tmp_path / "manifest.jsonl").read_bytes() == (whole / "manifest.jsonl").read_bytes()
    found = report["judge"]
    assert (
        found["methods"]["merge"]
        == found["methods"]["no_lora"]
        == {
            "composition": 6.5,
            "quality": 5,
        }
    )
    assert found["flips"] == 1 and found["cost"] == pytest.approx(8 * (100 + 2 * 10) / 1e6)
    assert [c["tie"] for c in found["comparisons"]] == [4, 4]
    page = (tmp_path / "report.md").read_text()
    assert "## Judge: judge:vlm:two, winner changed with the order in 100%" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "merge,best"], "--methods: expected some of no_lora.*'best'"),
        (["--methods", "cmlora(pace=1)"], "has no field 'pace'"),
        (["--methods", "cmlora(decay=slow)"], "CMLoRA.decay"),
        (["--methods", "merge,merge"], "is there twice"),
        (["--methods", "merge("], r"expected name or name\(key=value"),
        (["--interval", "2.5"], "--interval: expected integers"),
        (["--compose", "7"], "--compose: expected 1 to 5"),
        (["--combinations", "x"], "combinations: expected all, a number"),
        (["--testbed", "nowhere"], "testbed: expected 'embedded' or a folder; got 'nowhere'"),
        (["--scorers", "taste"], "--scorers: expected some of"),
        (["--scorers", "dino", "--dino-model", "a/b/c"], "scorer dino: model a/b/c: no"),
        (["--judge-url", "ftp://x"], "--judge-url: expected http"),
        (["--judge-url", "http://127.0.0.1:9/v1"], "--judge-model: expected"),
        ([*JUDGE, "--judge-rubric", "x"], "--judge-rubric: expected one of two, four"),
        ([*JUDGE, "--judge-prices", "x"], "--judge-prices: expected two numbers"),
        ([*JUDGE, "--methods", "merge"], "expected at least two methods"),
        (JUDGE, "judge http://127.0.0.1:9/v1: cannot be reached"),
        (["--scheduler", "best"], "--scheduler: expected one of"),
        (["--width", "30"], "--width: expected a multiple of 8"),
    ],
)
def test_mistakes_are_found_before_the_first_image(cmlora, tmp_path, arguments, message):
    code, out, err = cmlora("eval", "--out", tmp_path, *arguments)
    assert code != 0 and out == ""
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1 and not (tmp_path / "images").exists()


def test_intervals_are_swept():
    methods = parse_methods("no_lora, cmlora(low_frequency=a,b,late=low_only),merge")
    assert methods["cmlora(low_frequency=a,b,late=low_only)"] == cf.CMLoRA(
        low_frequency=("a", "b"), late="low_only"
    )
    swept = cached(parse_methods("no_lora,merge"), ["1", "3", "0"])
    assert list(swept) == ["no_lora", "merge k=1", "merge k=3", "merge k=nonuniform"]
    assert swept["merge k=3"] == cf.Merge(cache_interval=3)
    assert cached(methods, []) is methods


@pytest.fixture
def composlora(tmp_path, model, loras):
    """A copy of ComposLoRA with one character and one background; the command that runs it."""
    folder = tmp_path / "ComposLoRA"
    place = folder / "models" / "lora" / "anime"
    place.mkdir(parents=True)
    info = {}
    for name in ("character_1", "background_1"):
        shutil.copy(loras[name], place)
        category = name.rpartition("_")[0]
        info[category] = [{"id": name, "name": name, "trigger": ["a"], "url": "x"}]
    (folder / "anime_lora_info.json").write_text(json.dumps(info))
    given = ["--prompt", "a", "--negative", "b", "--model", model, "--steps", 2]
    given += ["--height", 64, "--width", 48, "--cfg-scale", 3]
    return ["eval", "--testbed", folder, "--out", tmp_path / "out", *given], place


def test_composlora_is_painted_with_its_preset(cmlora, composlora):
    command, _ = composlora
    code, out, err = cmlora(*command, "--methods", "merge,switch", "--interval", "1,2", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["combinations"] == [["character_1", "background_1"]]
    assert list(report["methods"]) == ["merge k=1", "merge k=2", "switch k=1", "switch k=2"]
    wanted = {"steps": 2, "guidance_scale": 3, "height": 64, "width": 48}
    wanted |= {"scheduler": "dpm++", "lora_scale": 0.8, "negative_prompt": "b"}
    assert wanted.items() <= report["generation"].items()
    assert report["methods"]["merge k=1"]["seconds_per_image"] > 0


def test_a_missing_lora_file_is_found_before_the_model_is_loaded(cmlora, composlora):
    command, place = composlora
    (place / "background_1.safetensors").unlink()
    code, _, err = cmlora(*command)
    assert code == 1 and "background_1.safetensors" in err and len(err.splitlines()) == 1
