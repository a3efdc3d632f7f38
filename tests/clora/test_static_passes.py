"""What CLoRA runs on a GPU, on the CPU: its passes replayed, and nothing read back by the host."""

import functools

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.engine import contrast, run

from ..support import recording
from ..support.clora_rows import NAMES, clora, fresh
from ..support.helpers import relative
from ..support.loops import random_inputs, run_pipeline

RECORDED = dict(weights="fold", backend="torch")
CLOSE = 1e-4  # relative, along a trajectory in float32


def losses(summary):
    return [loss for step in summary.steps for loss in step.loss]


def facts(summary):
    steps = [[step.weights, step.mask_area, step.per_image] for step in summary.steps]
    return losses(summary), steps


@pytest.mark.parametrize(
    "fields, weights",
    [
        ({}, "fold"),
        ({}, "delta"),
        (dict(refresh_after_update=True, maps_from="cond"), "fold"),
        (dict(latent_update=False, apply_mask_after=1), "fold"),
    ],
    ids=str,
)
def test_replays_are_the_eager_passes(fields, weights, monkeypatch):
    pipe, recorded = fresh(), RECORDED | dict(weights=weights)
    method = clora(pipe, **fields)
    inputs, other = (random_inputs(pipe, steps=3, images=2, seed=seed) for seed in (0, 1))
    with cf.accelerate(pipe, method):
        want, host = run_pipeline(pipe, inputs), cf.summary(pipe)
    recording.pretend(monkeypatch)
    with cf.accelerate(pipe, method, graphs="off", **recorded):
        eager, off = run_pipeline(pipe, inputs), cf.summary(pipe)
    with cf.accelerate(pipe, method, **recorded):
        first, once = run_pipeline(pipe, inputs), cf.summary(pipe)
        run_pipeline(pipe, other)
        again, thrice = run_pipeline(pipe, inputs), cf.summary(pipe)
    assert relative(eager, want) < CLOSE and losses(off) == pytest.approx(losses(host), rel=1e-4)
    assert torch.equal(first, eager) and torch.equal(again, eager)
    assert facts(once) == facts(thrice) == facts(off)
    assert off.graphs == {"used": False, "reason": 'graphs="off"'} and once.graphs["used"]
    passes = len(losses(off)) + 3 - 2 * (method.latent_update and not fields)
    assert (thrice.graphs["recorded"], thrice.graphs["replayed"]) == (0, passes)


def test_other_adapters_and_words_take_the_place_of_the_recorded_ones(monkeypatch):
    recording.pretend(monkeypatch)
    pipe, inputs = fresh(), random_inputs(fresh(), steps=3)
    with cf.accelerate(pipe, clora(pipe), **RECORDED):
        for _ in range(2):
            run_pipeline(pipe, inputs)
        pipe.set_adapters(NAMES, [0.5, 1.5, 1.0])
        text = torch.randn(4, 77, pipe.unet.config.cross_attention_dim)
        changed = clora(pipe, row_prompt_embeds=text, mask_threshold_alpha=0.6)
        cf.enable(pipe, changed, **RECORDED)
        replayed, summary = run_pipeline(pipe, inputs), cf.summary(pipe)
    with cf.accelerate(pipe, changed, graphs="off", **RECORDED):
        eager = run_pipeline(pipe, inputs)
    assert torch.equal(replayed, eager)
    assert (summary.graphs["recorded"], summary.graphs["replayed"]) == (0, 5)


def test_other_tokens_and_temperatures_are_recorded_anew(monkeypatch):
    recording.pretend(monkeypatch)
    pipe, inputs = fresh(), random_inputs(fresh(), steps=2)
    methods = [clora(pipe), clora(pipe, temperature=0.1), clora(pipe, 2)]
    with cf.accelerate(pipe, methods[0], **RECORDED):
        replayed = []
        for method in 2 * methods:
            cf.enable(pipe, method, **RECORDED)
            replayed.append(run_pipeline(pipe, inputs))
    for method, one, two in zip(methods, replayed[:3], replayed[3:], strict=True):
        with cf.accelerate(pipe, method, graphs="off", **RECORDED):
            eager = run_pipeline(pipe, inputs)
        assert torch.equal(one, eager) and torch.equal(two, eager)


def test_no_step_reads_anything_back(monkeypatch):
    """All but the first of a call, which makes tables; a captured pass is checked by recording."""
    monkeypatch.setattr(run, "on_gpu", lambda device: True)
    monkeypatch.setattr(contrast, "input_scale", lambda *given: 1.0)  # read on the host anyway
    pipe = fresh()
    inputs = random_inputs(pipe, steps=4)
    with cf.accelerate(pipe, clora(pipe, max_iter_to_alter=3), graphs="off", **RECORDED):
        forward, seen = pipe.unet.forward, []

        @functools.wraps(forward)
        def watched(*args, **kwargs):
            with recording.Recording() as found:
                out = forward(*args, **kwargs)
            seen.append(found.waits())
            return out

        monkeypatch.setitem(pipe.unet.__dict__, "forward", watched)
        run_pipeline(pipe, inputs)
    assert seen[1:] == [[], [], []]


def test_reasons(monkeypatch):
    pipe, inputs = fresh(), random_inputs(fresh(), steps=2)

    def reason(**options):
        with cf.accelerate(pipe, clora(pipe), **options):
            run_pipeline(pipe, inputs)
            return cf.summary(pipe).graphs["reason"]

    assert reason() == "the UNet is on cpu"
    recording.pretend(monkeypatch)
    assert reason(max_rows=3, **RECORDED) == "max_rows cuts steps into chunks"
