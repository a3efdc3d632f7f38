"""Fewer steps at the same cost, beside what has a cache."""

import json

import cmlora_fast as cf
import pytest
from cmlora_fast import eval as lab
from cmlora_fast.eval.controls import shallow_share, with_controls
from cmlora_fast.eval.samples import fewer_steps, without_cache
from cmlora_fast.schedule import plan

from ..support import helpers

NAMES = ["a", "b", "background"]
WORK = [  # method, steps, share of a shallow call, calls of one sample
    (cf.Merge(), 20, 0.5, 20),
    (cf.Merge(cache_interval=2), 20, 0.4, 10 + 10 * 0.4),
    (cf.Merge(cache="forecast"), 20, 0.4, 11),
    (cf.Composite(), 20, 0.4, 60),
    (cf.Composite(cache="relay"), 20, 0.4, 2 * 3 + 18),
    (cf.Composite(cache="relay", cache_interval=2), 20, 0.4, 2 * 3 + 18 * 2),
    (cf.CMLoRA(cache_interval=2), 20, 0.4, 3 + 9 * (1 + 2 * 0.4) + 10 * 3 * 0.4),
    (cf.Switch(cache="forecast", switch_step=2), 20, 0.4, 20),
]


@pytest.mark.parametrize("method, steps, share, work", WORK, ids=helpers.label)
def test_work_is_counted(method, steps, share, work):
    assert plan(method, NAMES, steps).work(share) == pytest.approx(work)
    whole = plan(without_cache(method), NAMES, steps).work(1.0)
    assert fewer_steps(method, NAMES, steps, share) == round(steps * work / whole)


def test_controls_stand_behind_what_has_a_cache():
    candidates = [
        lab.Candidate("none", None, loras=False),
        lab.Candidate("merge", cf.Merge()),
        lab.Candidate("forecast", cf.Merge(cache="forecast")),
        lab.Candidate("cmlora", cf.CMLoRA()),
        lab.Candidate("clora", lambda combination: None),
        lab.Candidate("saves nothing", cf.Switch(cache="forecast", switch_step=2)),
    ]
    found = with_controls(candidates, NAMES, 20, lambda method: 0.4)
    labels = [c.label for c in found]
    assert labels[:4] == ["none", "merge", "forecast", "forecast, fewer steps (11)"]
    assert labels[4] == "cmlora" and labels[5].startswith("cmlora, fewer steps (")
    assert labels[6:] == ["clora", "saves nothing"]
    assert (found[3].method, found[3].steps) == (cf.Merge(), 11)
    assert found[5].method == cf.CMLoRA(cache_interval=1)
    unknown = with_controls(candidates, NAMES, 20, lambda method: None)
    assert [c.label for c in unknown] == [c.label for c in candidates]


def test_what_a_shallow_call_costs():
    unet = helpers.pipeline("sd", "one_layer").unet
    method = cf.Merge(cache_interval=2, cache_block_id=0)
    assert 0.05 < shallow_share(unet, 128, 128, method) < 0.95
    assert shallow_share(unet, 128, 128, cf.Merge(cache="forecast")) == 1.0
    assert shallow_share(helpers.pipeline("sdxl").unet, 128, 128, method) is None


def test_eval_paints_them_and_tells_costs(tmp_path):
    from cmlora_fast.cli import main

    methods = "merge(cache=forecast),composite(cache=relay)"
    given = ["--compose", "2", "--combinations", "1", "--steps", "12", "--methods", methods]
    assert main(["eval", *given, "--out", str(tmp_path), "--json"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    costs = {label: found["cost"] for label, found in report["methods"].items()}
    assert list(costs) == [
        "merge(cache=forecast)",
        "merge(cache=forecast), fewer steps (8)",
        "composite(cache=relay)",
        "composite(cache=relay), fewer steps (7)",
    ]
    assert [*costs.values()] == pytest.approx([8 / 12, 8 / 12, 14 / 12, 14 / 12])
    assert "| cost |" in (tmp_path / "report.md").read_text()
    assert main(["eval", *given, "--no-controls", "--out", str(tmp_path), "--json"]) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["methods"]) == 2
