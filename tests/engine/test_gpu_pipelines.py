"""Whole pipelines on a GPU: the CPU's images, replayed bit for bit, on any stream and device."""

import contextlib
import functools

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.clora_rows import clora, fresh
from ..support.helpers import relative
from ..support.loops import random_inputs, run_pipeline

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]

C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}
FLOAT32 = 2e-3  # of a trajectory: other kernels, other orders of sums
METHODS = [
    None,
    cf.Switch(switch_step=2, cache_interval=3),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(cache_interval=2),
    cf.CMLoRA(variant="online", cache_interval=2, threshold=0.3, latch=False),
]
WEIGHTS = ["fold", "delta"]


@pytest.fixture(autouse=True)
def full_float32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def three(device="cpu", kind="sd", shape="dummy"):
    pipe = helpers.pipeline(kind, shape)
    adapters.add_many(pipe, [*SCALES], adapters.EVERYTHING, [*SCALES.values()])
    return pipe.to(device)


@functools.cache
def on(device):
    return three(device)


def images(pipe, inputs, method, count=1, **options):
    """Latents of ``count`` calls, and the summary of the last."""
    with cf.accelerate(pipe, method, **options):
        latents = [run_pipeline(pipe, inputs).cpu() for _ in range(count)]
        return latents, cf.summary(pipe)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_the_cpus_latents_and_decisions(method, weights):
    inputs = random_inputs(on("cpu"), steps=8, images=2)
    (want,), host = images(on("cpu"), inputs, method, weights=weights)
    (got,), device = images(on("cuda"), inputs, method, weights=weights)
    assert relative(got, want) < FLOAT32
    for ours, theirs in zip(device.steps, host.steps, strict=True):
        assert (ours.dominant, ours.refreshed) == (theirs.dominant, theirs.refreshed)
        assert (ours.full_rows, ours.early) == (theirs.full_rows, theirs.early)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_replays_are_the_eager_steps(method, weights):
    pipe = on("cuda")
    inputs = random_inputs(pipe, steps=8)
    (eager,), _ = images(pipe, inputs, method, weights=weights, graphs="off")
    replayed, summary = images(pipe, inputs, method, 3, weights=weights)
    assert summary.graphs["used"], summary.graphs["reason"]
    assert summary.graphs["replayed"] == 8
    assert all(torch.equal(latents, eager) for latents in replayed)


def test_other_adapters_in_the_recorded_steps():
    pipe, method = three("cuda"), cf.CMLoRA(cache_interval=2)
    inputs = random_inputs(pipe, steps=8)
    pipe.set_adapters([C, S], [0.8, 1.2])
    with cf.accelerate(pipe, method, weights="fold"):
        for _ in range(2):
            run_pipeline(pipe, inputs)
        pipe.set_adapters([S, B], [0.5, 1.0])
        replayed, summary = run_pipeline(pipe, inputs), cf.summary(pipe)
    (eager,), _ = images(pipe, inputs, method, weights="fold", graphs="off")
    assert (summary.graphs["recorded"], summary.graphs["replayed"]) == (0, 8)
    assert torch.equal(replayed.cpu(), eager)


def test_another_stream():
    pipe, method = on("cuda"), cf.CMLoRA(cache_interval=2)
    inputs = random_inputs(pipe, steps=8)
    (want,), _ = images(pipe, inputs, method, graphs="off")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        got, _ = images(pipe, inputs, method, 3)
    assert all(torch.equal(latents, want) for latents in got)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu():
    inputs, method = random_inputs(on("cpu"), steps=8), cf.CMLoRA(cache_interval=2)
    (want,), _ = images(on("cpu"), inputs, method)
    got, summary = images(three("cuda:1"), inputs, method, 3)
    assert summary.graphs["replayed"] == 8 and torch.cuda.current_device() == 0
    assert all(relative(latents, want) < FLOAT32 for latents in got)


@contextlib.contextmanager
def waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", ["auto", "off"])
@pytest.mark.parametrize("method", [*METHODS, "clora"], ids=helpers.label)
def test_no_step_waits_for_the_device(method, graphs, monkeypatch):
    """All but the first of a call, which reads the adapters and makes the text's keys."""
    pipe = on("cuda")
    if method == "clora":
        pipe = fresh().to("cuda")
        method = clora(pipe, max_iter_to_alter=4)
    inputs = random_inputs(pipe, steps=8)
    with cf.accelerate(pipe, method, graphs=graphs):
        for _ in range(2):
            run_pipeline(pipe, inputs)
        forward, calls = pipe.unet.forward, []

        def strict(*args, **kwargs):
            calls.append(1)
            with waiting_is_an_error() if len(calls) > 1 else contextlib.nullcontext():
                return forward(*args, **kwargs)

        monkeypatch.setitem(pipe.unet.__dict__, "forward", functools.wraps(forward)(strict))
        run_pipeline(pipe, inputs)
        monkeypatch.undo()
    assert len(calls) == 8


def test_clora():
    """Gradients of attention and convolutions sum in an order that differs from run to run."""
    pipe = fresh()
    inputs, method = random_inputs(pipe, steps=4), clora(pipe)
    (want,), host = images(pipe, inputs, method)
    pipe.to("cuda")
    (eager,), device = images(pipe, inputs, method, graphs="off")
    replayed, summary = images(pipe, inputs, method, 3)
    assert relative(eager, want) < FLOAT32
    assert all(relative(latents, eager) < FLOAT32 for latents in replayed)
    assert summary.graphs["used"], summary.graphs["reason"]
    assert (summary.graphs["recorded"], summary.graphs["replayed"]) == (0, 6)
    for ours, theirs in zip(device.steps, host.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)


def test_half_precision_of_a_real_shape():
    """SD 1.5's blocks in bfloat16, beside PEFT in float32: no worse than PEFT in bfloat16."""
    pipe = three("cuda", shape="sd15")
    inputs = random_inputs(pipe, steps=4)
    want = run_pipeline(pipe, inputs).cpu()
    pipe.to(torch.bfloat16)
    half = {k: v.bfloat16() if torch.is_tensor(v) else v for k, v in inputs.items()}
    theirs = relative(run_pipeline(pipe, half).cpu(), want)
    for weights in WEIGHTS:
        got, _ = images(pipe, half, None, 3, weights=weights)
        assert relative(got[-1], want) < 2 * theirs
