"""What ran: the fields of a summary and of its step records."""

import functools
import json

import cmlora_fast as cf
import pytest
from cmlora_fast.engine.summary import StepRecord

from ..support import adapters, helpers
from ..support.helpers import call

C, S, B = "character_1", "style_1", "background_1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def three():
    return adapters.add_many(helpers.pipeline("sd", "dummy"), [C, S, B], adapters.EVERYTHING)


def ran(method, *, options=(), **given):
    pipe = three()
    with cf.accelerate(pipe, method, **dict(options)):
        call(pipe, **{"num_inference_steps": 8, **given})
    return cf.summary(pipe)


METHODS = [
    (None, 1),  # rows per incoming sample
    ("merge", 1),
    ("switch", 1),
    ("composite", 3),
    ("cmlora", 3),
    (cf.CMLoRA(variant="online"), 3),
    (cf.CMLoRA(variant="async"), 3),
]


@pytest.mark.parametrize(("method", "rows"), METHODS, ids=helpers.label)
def test_every_step_is_recorded(method, rows):
    summary = ran(method)
    steps = summary.steps
    assert [step.index for step in steps] == list(range(8))
    assert [step.timestep for step in steps] == [float(t) for t in three().scheduler.timesteps]
    assert list(summary.adapters) == [C, S, B]
    for step in steps:
        assert step.milliseconds > 0
        assert step.full_rows + step.shallow_rows == 2 * rows
        assert sum(step.weights.values()) == pytest.approx(1.0)
        assert set(step.refreshed) <= {C, S, B}
    assert summary.seconds > 0
    assert summary.weights["mode"] in ("fold", "delta") and summary.weights["reason"]
    assert summary.weights["bytes"] >= 0 and summary.peak_bytes >= 0
    assert isinstance(summary.backend, str)


@pytest.mark.parametrize(("method", "rows"), METHODS, ids=helpers.label)
def test_json_and_table(method, rows):
    summary = ran(method)
    plain = json.loads(json.dumps(summary.to_dict()))
    names = "method adapters backend weights peak_bytes seconds steps".split()
    assert set(names) <= set(plain)
    fields = "index timestep milliseconds dominant early refreshed weights full_rows shallow_rows"
    for step in plain["steps"]:
        assert set(fields.split()) | {"amplitude"} <= set(step)
        assert step["full_rows"] + step["shallow_rows"] == 2 * rows
    text = str(summary)
    assert len(text.splitlines()) >= 8 and C in text


def test_no_leader_where_none_leads():
    for method in ("merge", "composite"):
        assert {step.dominant for step in ran(method).steps} == {None}
        assert {step.early for step in ran(method).steps} == {None}


def test_switch_leads_with_the_active_one():
    steps = ran(cf.Switch(switch_step=3)).steps
    assert [step.dominant for step in steps] == [C, C, C, S, S, S, B, B]
    assert all(step.weights[step.dominant] == pytest.approx(1.0) for step in steps)


def test_refreshed_is_everything_on_a_full_step():
    """With Merge the active adapters; with CMLoRA all at the first step, then the leader."""
    steps = ran(cf.CMLoRA(cache_interval=2)).steps
    assert sorted(steps[0].refreshed) == sorted([C, S, B])
    assert [list(step.refreshed) for step in steps[1:4]] == [[], [S], []]
    assert (steps[0].full_rows, steps[0].shallow_rows) == (6, 0)
    assert (steps[1].full_rows, steps[1].shallow_rows) == (0, 6)
    assert (steps[2].full_rows, steps[2].shallow_rows) == (2, 4)
    for step in ran("composite").steps:
        assert sorted(step.refreshed) == sorted([C, S, B]) and step.full_rows == 6


def test_amplitude_only_online_or_recorded():
    assert {step.amplitude for step in ran("cmlora").steps} == {None}
    assert {step.amplitude for step in ran(None).steps} == {None}
    online = ran(cf.CMLoRA(variant="online")).steps
    recorded = ran("cmlora", options={"record": True}).steps
    for step in (*online, *recorded):
        assert 0 < step.amplitude <= 1


def test_record_keeps_features_and_profiles():
    summary = ran("cmlora", options={"record": True})
    assert summary.profiles.shape[0] == 8
    assert summary.profiles.shape[1] == 12  # radii 0..11 of 16 x 16 latents
    assert set(summary.features) == {C, S, B}


def test_several_images():
    steps = ran(cf.CMLoRA(variant="online"), num_images_per_prompt=2).steps
    for step in steps:
        assert step.full_rows + step.shallow_rows == 12
        assert len(step.per_image) == 2
        first = step.per_image[0]
        assert (first["dominant"], first["amplitude"]) == (step.dominant, step.amplitude)
        for image in step.per_image:
            assert sum(image["weights"].values()) == pytest.approx(1.0)


def test_without_guidance_half_the_rows():
    for step in ran("composite", guidance_scale=1.0).steps:
        assert step.full_rows == 3


def test_summary_is_of_the_last_call():
    pipe = three()
    with cf.accelerate(pipe, "composite"):
        call(pipe, num_inference_steps=4)
        first = cf.summary(pipe)
        call(pipe, num_inference_steps=2)
        assert len(cf.summary(pipe).steps) == 2
    assert len(first.steps) == 4  # what was handed out does not change


def test_method_is_named():
    for method, name in [("merge", "merge"), (cf.CMLoRA(), "cmlora"), (cf.Switch(), "switch")]:
        assert name in str(ran(method).method).lower()


@pytest.mark.parametrize("name", ["x[/b]", "[red]y", ":smile:", "x[link=http://x]"])
def test_names_of_adapters_are_no_markup(name):
    step = StepRecord(0, 999.0, dominant=name, refreshed=(name,), full_rows=1, shallow_rows=1)
    text = str(cf.Summary(adapters=(name,), steps=[step], weights={"reason": name}))
    assert text.count(name) == 4
