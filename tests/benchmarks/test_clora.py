"""The benchmark's loop paints what the engine paints, and tells what it measured."""

import json

from cmlora_fast.benchmarks.clora.__main__ import CONTENDERS, measure


def test_both_contenders_paint_the_same_image():
    small = dict(channels=(32, 32, 32, 32), size=16, rounds=1, steps=2, refinements=1)
    results = json.loads(json.dumps(measure(**small, memory=False)))
    assert results["difference"] < 1e-4
    assert set(results["contenders"]) == set(CONTENDERS)
    assert all(found["seconds"]["median"] > 0 for found in results["contenders"].values())
    assert results["arguments"]["refinements"] == 1 and results["memory_ratio"] is None
