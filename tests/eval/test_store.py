"""What survives a kill: ledgers, images, and keys that change with what they stand for."""

import dataclasses
import json

import cmlora_fast as cf
import pytest
from cmlora_fast import eval as lab
from cmlora_fast.eval import jobs
from cmlora_fast.eval.endpoint import Endpoint
from cmlora_fast.eval.judge import Judge, judge_all
from cmlora_fast.eval.run import score_all
from PIL import Image

JOB = lab.Job(
    lab.Generation("embedded", "d1"), "a cat", (lab.Adapter("x", "d2"),), cf.CMLoRA(), seed=3
)


def test_a_torn_line_is_dropped_and_whole_ones_are_kept(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = lab.Ledger(path)
    for key in "abc":
        ledger.add({"key": key, "value": key * 3})
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        again = lab.Ledger(path)
        assert list(r["key"] for r in again) == ["a", "b"]
        again.add({"key": "c", "value": "ccc"})
        assert path.read_bytes() == whole


def test_a_broken_ledger_is_named_with_its_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"key": "a"}\n{"no key": 1}\n')
    with pytest.raises(ValueError, match=r"ledger.jsonl, line 2: expected a JSON object"):
        lab.Ledger(path)


def test_images_are_kept_checked_and_restored(tmp_path):
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    store = lab.ImageStore(tmp_path)
    assert not store.has(JOB)
    store.add(JOB, image, {"seconds": 1.0})
    content = store.path(JOB).read_bytes()
    assert lab.ImageStore(tmp_path).has(JOB)
    store.path(JOB).write_bytes(content[:-5])
    again = lab.ImageStore(tmp_path)
    assert not again.has(JOB)
    again.add(JOB, image, {"seconds": 2.0})
    assert again.path(JOB).read_bytes() == content
    assert len(again.manifest) == 1 and again.record(JOB)["seconds"] == 1.0
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"prompt": "a dog"},
        {"adapters": (lab.Adapter("x", "d3"),)},
        {"adapters": (lab.Adapter("x", "d2", 0.5),)},
        {"method": cf.CMLoRA(cache_interval=2)},
        {"method": cf.Composite()},
        {"method": None},
        {"generation": lab.Generation("embedded", "d1", steps=21)},
        {"generation": lab.Generation("embedded", "d9")},
    ],
)
def test_a_key_changes_with_everything_that_changes_the_image(change):
    other = dataclasses.replace(JOB, **change)
    assert other.key != JOB.key == dataclasses.replace(JOB).key


def test_without_adapters_the_method_does_not_matter():
    bare = dataclasses.replace(JOB, adapters=())
    assert bare.key == dataclasses.replace(bare, method=None).key


def test_digests_see_both_ends_of_large_files(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "WHOLE", 100)
    monkeypatch.setattr(jobs, "END", 10)
    contents = [b"a" * 200, b"b" + b"a" * 199, b"a" * 199 + b"b", b"a" * 201]
    found = set()
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(content)
        found.add(jobs.digest(path))
    assert len(found) == len(contents)
    assert lab.model_digest(tmp_path) and lab.model_digest("owner/name") == ""


def test_an_image_with_other_bytes_is_recorded_anew(tmp_path):
    store = lab.ImageStore(tmp_path)
    store.add(JOB, Image.new("RGB", (8, 8), (1, 2, 3)), {"seconds": 1.0})
    store.path(JOB).unlink()
    again = lab.ImageStore(tmp_path)
    assert not again.has(JOB)
    again.add(JOB, Image.new("RGB", (8, 8), (1, 2, 4)), {"seconds": 2.0})
    for resumed in (again, lab.ImageStore(tmp_path)):
        assert resumed.has(JOB) and resumed.record(JOB)["seconds"] == 2.0
        assert len(resumed.manifest) == 1
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 2


def _painted(**change):
    told = {"key": JOB.key, "image": "x.png", "sha256": "0", "seconds": 1, "full_rows": 1}
    told |= {"shallow_rows": 0, **change}
    return {name: value for name, value in told.items() if value != "lacks"}


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        (_painted(sha256="lacks"), "sha256"),
        (_painted(image="lacks"), "image"),
        (_painted(seconds="lacks"), "seconds"),
        (_painted(full_rows="lacks"), "full_rows"),
        (_painted(shallow_rows="lacks"), "shallow_rows"),
        (_painted(sha256=None), "sha256"),
        (_painted(sha256=12), "sha256"),
        (_painted(seconds="1"), "seconds"),
        (_painted(key=["x"]), "a key"),
        (_painted(key=None), "a key"),
        ({}, "a key"),
        ([], "a key"),
        (None, "a key"),
        (3, "a key"),
    ],
)
def test_a_record_that_lacks_fields_is_told_like_a_broken_line(tmp_path, record, wanted):
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps(_painted()) + "\n" + json.dumps(record) + "\n")
    message = rf"manifest.jsonl, line 2: expected a JSON object with {wanted}; got"
    with pytest.raises(ValueError, match=message):
        lab.evaluate(None, [], [], tmp_path)
    if wanted in ("a key", "sha256", "image"):
        with pytest.raises(ValueError, match=message):
            lab.ImageStore(tmp_path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"key": ' + "9" * 5000 + "}", "{", '"x'])
def test_a_line_that_is_no_json_is_told(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1: expected a JSON object") as caught:
        lab.Ledger(tmp_path / "x.jsonl")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "scores", ["lacks", None, [], 3, {"clip": "high"}, {"clip": None}, {"concepts": {"x": "y"}}]
)
def test_a_record_without_scores_is_told_before_anything_is_painted(tmp_path, scores):
    record = {"key": "k"} if scores == "lacks" else {"key": "k", "scores": scores}
    (tmp_path / "scores.jsonl").write_text(json.dumps(record) + "\n")
    sample = lab.Sample("merge", (), JOB)
    message = r"scores\.jsonl, line 1: expected a JSON object with scores"
    with pytest.raises(ValueError, match=message):
        lab.evaluate(None, [sample], [], tmp_path)
    with pytest.raises(ValueError, match=message):
        score_all([sample], [], lab.ImageStore(tmp_path))


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"tokens": [1, 2]}, "scores"),
        ({"scores": [{}, {}]}, "tokens"),
        ({"scores": [{}], "tokens": [1, 2]}, "scores"),
        ({"scores": [{"a": "x"}, {}], "tokens": [1, 2]}, "scores"),
        ({"scores": [{}, {}], "tokens": [1]}, "tokens"),
        ({"scores": [{}, {}], "tokens": [1, None]}, "tokens"),
    ],
)
def test_a_judgement_that_lacks_something_is_told(tmp_path, record, wanted):
    (tmp_path / "judge.jsonl").write_text(json.dumps({"key": "k", **record}) + "\n")
    judge = Judge(Endpoint("http://127.0.0.1:9/v1", "vlm"))
    message = rf"judge\.jsonl, line 1: expected a JSON object with {wanted}"
    with pytest.raises(ValueError, match=message):
        judge_all(judge, [lab.Sample("merge", (), JOB)], lab.ImageStore(tmp_path))
