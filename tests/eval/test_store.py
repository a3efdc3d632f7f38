"""What survives a kill: ledgers, images, and keys that change with what they stand for."""

import dataclasses

import cmlora_fast as cf
import pytest
from cmlora_fast import eval as lab
from cmlora_fast.eval import jobs
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
