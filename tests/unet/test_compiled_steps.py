"""Steps by ``torch.compile``: one graph each, the same images, other adapters without compiling."""

import functools

import cmlora_fast as cf
import pytest
import torch
from torch._dynamo.utils import counters

from ..support import recording
from ..support.helpers import relative
from ..support.loops import random_inputs, run_pipeline
from ..support.snapshot import assert_equal, snapshot
from ..support.three import SCALES, B, C, S, ran, three

ROUNDING = 1e-4  # along a trajectory
METHOD = cf.CMLoRA(cache_interval=2)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What torch.compile sees, run as it is: what a compiler makes of it is torch's to test."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    counters.clear()


def graphs():
    """Graphs made, and places where one had to be cut."""
    return counters["stats"]["unique_graphs"], len(counters["graph_break"])


def test_whole_deep_and_shallow_steps():
    pipe = three()
    pipe.set_adapters([C, S], [0.8, 1.2])
    inputs = random_inputs(pipe, steps=8)
    given = dict(weights="fold", graphs="compile")
    try:
        want, host = ran(pipe, inputs, METHOD)
        before = snapshot(pipe)
        with cf.accelerate(pipe, METHOD, **given):
            images = [run_pipeline(pipe, inputs) for _ in range(3)]
            summary, made = cf.summary(pipe), graphs()
            pipe.set_adapters([S, B], [0.5, 1.0])
            other = run_pipeline(pipe, inputs)
            assert cf.summary(pipe).graphs["recorded"] == 0 and graphs() == made == (3, 0)
        wanted, _ = ran(pipe, inputs, METHOD)
        pipe.set_adapters([C, S], [0.8, 1.2])
        assert_equal(snapshot(pipe), before)
    finally:
        pipe.set_adapters([*SCALES], [*SCALES.values()])
    assert all(relative(image, want) < ROUNDING for image in images)
    assert relative(other, wanted) < ROUNDING
    assert summary.graphs["used"] and summary.graphs["reason"] == "steps are compiled"
    assert (summary.graphs["recorded"], summary.graphs["replayed"]) == (0, 8)
    assert [s.refreshed for s in summary.steps] == [s.refreshed for s in host.steps]


def test_on_a_gpu_what_is_compiled_is_recorded(monkeypatch):
    """Nothing compiles while operations are watched: here the function itself."""
    pipe = three()
    inputs = random_inputs(pipe, steps=3)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    recording.pretend(monkeypatch)
    want, _ = ran(pipe, inputs, None, weights="fold", backend="torch", graphs="off")
    got, summary = ran(pipe, inputs, None, weights="fold", backend="torch", graphs="compile")
    assert torch.equal(got, want)
    assert summary.graphs["reason"] == "steps are compiled and recorded"


def test_deltas():
    pipe = three()
    inputs = random_inputs(pipe, steps=3)
    want, _ = ran(pipe, inputs, None, weights="delta")
    got, summary = ran(pipe, inputs, None, weights="delta", graphs="compile")
    assert relative(got, want) < ROUNDING
    assert summary.graphs["replayed"] == 2 and graphs() == (1, 0)


def fails(function, **options):
    def compiled(inputs):
        raise RuntimeError("no compiler\nin this path")

    return compiled


def test_on_a_gpu_what_cannot_be_compiled_is_recorded_as_it_is(monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=8)
    monkeypatch.setattr(torch, "compile", fails)
    recording.pretend(monkeypatch)
    want, recorded = ran(pipe, inputs, METHOD, weights="fold", backend="torch")
    got, summary = ran(pipe, inputs, METHOD, weights="fold", backend="torch", graphs="compile")
    assert torch.equal(got, want)
    told = summary.graphs
    assert told["used"] and told["recorded"] > 1
    assert all(told[name] == recorded.graphs[name] for name in ("recorded", "replayed"))
    assert told["reason"] == "steps are recorded; compiling failed: no compiler"


def test_reasons(monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=3)
    want, _ = ran(pipe, inputs, None)
    _, summary = ran(pipe, inputs, "composite", graphs="compile", max_rows=2)
    assert summary.graphs["reason"] == "max_rows cuts steps into chunks"
    monkeypatch.setattr(torch, "compile", fails)
    got, summary = ran(pipe, inputs, None, graphs="compile")
    assert relative(got, want) < ROUNDING
    assert summary.graphs["reason"] == "compiling failed: no compiler" and "none" in str(summary)
