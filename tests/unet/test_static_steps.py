"""What a GPU runs, on the CPU: decisions by table, weights in stacks, steps replayed.

A replay runs the recorded operations again on the memory that they had, as a CUDA graph does.
"""

import dataclasses
import itertools

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.engine import run
from cmlora_fast.unet import graphs

from ..support import adapters, helpers, recording
from ..support.helpers import call, relative
from ..support.loops import random_inputs, run_pipeline
from ..support.three import SCALES, B, C, S, ran, three

ROUNDING = 1e-4  # along a trajectory
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


METHODS = [
    None,
    cf.Merge(cache_interval=2),
    cf.Switch(switch_step=2, cache_interval=3),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(cache_interval=2),
    cf.CMLoRA(cache_interval=2, max_age=3),
    cf.CMLoRA(cache_interval=2, dominant_full="every_step"),
    cf.CMLoRA(variant="async", cache_interval=3),
]


def facts(summary):
    """What was decided, and the amplitudes, which follow the rounding of the steps before."""
    steps, amplitudes = summary.to_dict()["steps"], []
    for step in steps:
        del step["milliseconds"]
        for record in (step, *step["per_image"]):
            amplitudes.append(record.pop("amplitude", None) or 0.0)
    return steps, amplitudes


def check_facts(got, want):
    (steps, amplitudes), (wanted, readings) = facts(got), facts(want)
    assert steps == wanted and amplitudes == pytest.approx(readings, rel=1e-3)


RECORDED = dict(weights="fold", backend="torch")
FOLDED = [(method, "fold") for method in METHODS]
BESIDE = [(method, "delta") for method in (None, *METHODS[4:7])]


@pytest.mark.parametrize("method, weights", FOLDED + BESIDE, ids=helpers.label)
def test_replays_are_the_eager_steps_and_decisions_the_hosts(method, weights, monkeypatch):
    pipe, recorded = three(), RECORDED | dict(weights=weights)
    inputs, other = (random_inputs(pipe, steps=8, images=2, seed=seed) for seed in (0, 1))
    want, host = ran(pipe, inputs, method)
    recording.pretend(monkeypatch)
    eager, device = ran(pipe, inputs, method, graphs="off", **recorded)
    with cf.accelerate(pipe, method, **recorded):
        first, once = run_pipeline(pipe, inputs), cf.summary(pipe)
        run_pipeline(pipe, other)  # other text and noise in the same memory
        again, thrice = run_pipeline(pipe, inputs), cf.summary(pipe)
    assert relative(eager, want) < ROUNDING
    assert torch.equal(first, eager) and torch.equal(again, eager)
    for summary in (device, once, thrice):
        check_facts(summary, host)
    assert device.graphs == {"used": False, "reason": 'graphs="off"'}
    assert once.graphs["recorded"] > 0 and thrice.graphs["replayed"] == 8
    assert thrice.graphs["recorded"] == 0 and "8 replayed" in str(thrice)


@pytest.mark.parametrize("method", METHODS[3:6], ids=helpers.label)
def test_deltas_beside_the_base(method, monkeypatch):
    """Their row tables are gathered on the device, convolutions run all ranks."""
    pipe = three()
    inputs = random_inputs(pipe, steps=8, images=2)
    want, host = ran(pipe, inputs, method, weights="delta")
    monkeypatch.setattr(run, "on_gpu", lambda device: True)
    eager, device = ran(pipe, inputs, method, weights="delta", graphs="off")
    again, _ = ran(pipe, inputs, method, weights="delta")
    assert relative(eager, want) < ROUNDING and torch.equal(again, eager)
    check_facts(device, host)


@pytest.mark.parametrize(
    "options",
    [
        dict(cache_interval=2),
        dict(cache_interval=2, latch=False),
        dict(cache_interval=1, latch=False, amplitude="log"),
    ],
    ids=helpers.label,
)
def test_images_decide_on_the_device(options, monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=8, images=2)
    method = cf.CMLoRA(variant="online", threshold=0.0, **options)
    _, seen = ran(pipe, inputs, method)
    readings = sorted(image["amplitude"] for step in seen.steps for image in step.per_image)
    middle = readings[len(readings) // 4 : -len(readings) // 4]
    gap, below = max((b - a, a) for a, b in itertools.pairwise(middle))
    method = dataclasses.replace(method, threshold=below + gap / 2)  # rounding changes no stage
    want, host = ran(pipe, inputs, method)
    assert {image["early"] for step in host.steps for image in step.per_image} == {True, False}
    recording.pretend(monkeypatch)
    eager, device = ran(pipe, inputs, method, graphs="off", **RECORDED)
    replayed, again = ran(pipe, inputs, method, **RECORDED)
    assert relative(eager, want) < ROUNDING and torch.equal(eager, replayed)
    check_facts(device, host)
    check_facts(again, host)


@pytest.mark.parametrize("weights", ["fold", "delta"])
def test_other_adapters_take_the_place_of_the_recorded_ones(weights, monkeypatch):
    """Folds are rewritten where they are, and so is the table of refreshed rows; slabs are not."""
    recorded = RECORDED | dict(weights=weights)
    recording.pretend(monkeypatch)
    pipe = three()
    inputs, method = random_inputs(pipe, steps=8), cf.CMLoRA(cache_interval=2)
    pipe.set_adapters([C, S], [0.8, 1.2])
    try:
        with cf.accelerate(pipe, method, **recorded):
            for _ in range(2):
                run_pipeline(pipe, inputs)
            pipe.set_adapters([S, B], [0.5, 1.0])
            replayed, summary = run_pipeline(pipe, inputs), cf.summary(pipe)
        fresh, _ = ran(pipe, inputs, method, graphs="off", **recorded)
    finally:
        pipe.set_adapters([*SCALES], [*SCALES.values()])
    assert torch.equal(replayed, fresh)
    assert summary.graphs["recorded"] == (0 if weights == "fold" else 2)
    assert summary.graphs["replayed"] == (8 if weights == "fold" else 5)


KINDS = [
    ("sdxl", None, "euler", {}),
    ("controlnet", "dummy", "ddim", {}),  # residuals at every step
    ("sd", "dummy", "heun", {}),  # two evaluations per step
    ("sd", "dummy", "lcm", {"guidance_scale": 1.0}),
]


@pytest.mark.parametrize(("kind", "shape", "scheduler", "given"), KINDS)
def test_pipelines_and_schedulers(kind, shape, scheduler, given, monkeypatch):
    pipe = adapters.add_many(helpers.pipeline(kind, shape, scheduler), [C, B], adapters.ATTENTION)
    method = cf.CMLoRA(cache_interval=2)

    def images(**options):
        with cf.accelerate(pipe, method, **options):
            return [call(pipe, num_inference_steps=5, seed=seed, **given) for seed in (0, 1, 0)]

    want = images()
    recording.pretend(monkeypatch)
    eager, replayed = images(graphs="off", **RECORDED), images(**RECORDED)
    for image, slow, fast in zip(want, eager, replayed, strict=True):
        assert relative(slow, image) < ROUNDING and torch.equal(fast, slow)
    assert cf.summary(pipe).graphs["replayed"] > 0


def test_batches_and_sizes_have_steps_of_their_own(monkeypatch):
    recording.pretend(monkeypatch)
    monkeypatch.setattr(graphs, "MOST_PASSES", 4)
    pipe, method = three(), cf.Composite(cache_interval=2)
    given = [dict(images=1), dict(images=2), dict(size=(16, 24)), dict(guidance_scale=1.0)] * 2
    with cf.accelerate(pipe, method, **RECORDED):
        replayed = [run_pipeline(pipe, random_inputs(pipe, steps=6, **kind)) for kind in given]
    with cf.accelerate(pipe, method, graphs="off", **RECORDED):
        eager = [run_pipeline(pipe, random_inputs(pipe, steps=6, **kind)) for kind in given]
    assert all(map(torch.equal, replayed, eager))


def test_any_grad_mode(monkeypatch):
    recording.pretend(monkeypatch)
    pipe = three()
    inputs = random_inputs(pipe, steps=4)
    with cf.accelerate(pipe, "composite", **RECORDED):
        with torch.inference_mode():
            first = run_pipeline(pipe, inputs).clone()
        assert torch.equal(run_pipeline(pipe, inputs), first)
    with cf.accelerate(pipe, **RECORDED):
        given = helpers.unet_inputs(pipe)
        given["sample"].requires_grad_()
        assert pipe.unet(**given)[0].requires_grad  # outside a pipeline, gradients as ever


def test_reasons(monkeypatch):
    recording.pretend(monkeypatch)
    pipe = three()
    inputs = random_inputs(pipe, steps=2)

    def reason(**options):
        return ran(pipe, inputs, "composite", **options)[1].graphs["reason"]

    assert reason(max_rows=2) == "max_rows cuts steps into chunks"
    handle = pipe.unet.mid_block.register_forward_hook(lambda *args: None)
    assert reason() == "mid_block has forward hooks"
    handle.remove()

    def fails(recorder, function):
        raise RuntimeError("operation not permitted\nwhile capturing")

    monkeypatch.setattr(graphs.Recorder, "record", fails)
    eager, _ = ran(pipe, inputs, "composite", graphs="off")
    replayed, summary = ran(pipe, inputs, "composite")
    assert torch.equal(eager, replayed)
    assert summary.graphs["reason"] == "recording failed: operation not permitted"
    monkeypatch.undo()
    assert reason() == "the UNet is on cpu"
    with pytest.raises(ValueError, match="graphs: expected one of"):
        cf.enable(pipe, graphs="on")
