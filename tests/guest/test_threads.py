"""Several threads at one UNet, or at one pipeline."""

import copy
import threading

import cmlora_fast as cf
import diffusers
import pytest
import torch
from cmlora_fast.hooks import patches

from ..support import adapters, helpers
from ..support.helpers import call, relative
from ..support.snapshot import assert_equal, snapshot

RUN = 1e-4
STEPS = 5
METHODS = [None, cf.Composite(), cf.CMLoRA(), cf.Switch(switch_step=2)]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING)


def beside(pipe):
    """A pipeline over the same parts with a scheduler of its own."""
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    other = diffusers.StableDiffusionPipeline(
        **parts, scheduler=helpers.SCHEDULERS["ddim"](), requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    return other


def together(*work):
    """What each gives, or its error."""
    found, gate = [None] * len(work), threading.Barrier(len(work))

    def run(i):
        gate.wait()
        try:
            found[i] = work[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_pipelines_over_one_unet(pipe, method):
    """The one that is enabled runs its method, the other is as if nothing had been enabled."""
    other = beside(pipe)
    plain = call(other, num_inference_steps=STEPS, seed=1)
    cf.enable(pipe, method)
    want = call(pipe, num_inference_steps=STEPS, seed=0)
    for _ in range(3):
        begun = threading.Event()

        def first(begun=begun):
            def tell(pipe, i, t, tensors):
                begun.set()
                return tensors

            return call(pipe, num_inference_steps=STEPS, seed=0, callback_on_step_end=tell)

        def second(begun=begun):
            begun.wait()  # before, its UNet calls would be nobody's
            return call(other, num_inference_steps=2, seed=1)

        got, _ = together(first, second)
        assert relative(got, want) < RUN
        assert len(cf.summary(pipe).steps) == STEPS
    if method is None:
        got = together(
            lambda: call(pipe, num_inference_steps=STEPS, seed=0),
            lambda: call(other, num_inference_steps=STEPS, seed=1),
        )
        assert relative(got[0], want) < RUN
        assert relative(got[1], plain) < RUN


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_one_pipeline_called_twice_at_once(pipe, method):
    """Right, or one clear error: never a mixture."""
    cf.enable(pipe, method)
    want = [call(pipe, num_inference_steps=STEPS, seed=seed) for seed in range(2)]
    for _ in range(3):
        got = together(
            *(lambda s=seed: call(pipe, num_inference_steps=STEPS, seed=s) for seed in range(2))
        )
        right = [not isinstance(g, Exception) for g in got]
        assert any(right)
        for image, wanted in zip(got, want, strict=True):
            if isinstance(image, Exception):
                assert isinstance(image, RuntimeError)
                assert "another thread" in str(image)
            else:
                assert relative(image, wanted) < RUN
    assert relative(call(pipe, num_inference_steps=STEPS, seed=0), want[0]) < RUN


def test_a_call_after_one_that_died_in_another_thread(pipe):
    def fail(pipe, i, t, tensors):
        raise OSError("disk full")

    cf.enable(pipe, "composite")
    want = call(pipe, num_inference_steps=STEPS)
    died, leave = threading.Event(), threading.Event()

    def dies_and_stays():
        with pytest.raises(OSError, match="disk full"):
            call(pipe, num_inference_steps=STEPS, callback_on_step_end=fail)
        died.set()
        leave.wait(60)

    thread = threading.Thread(target=dies_and_stays)
    thread.start()
    assert died.wait(60)
    assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
    assert thread.is_alive()
    leave.set()
    thread.join()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_disable_while_another_thread_calls(pipe, method):
    """Nothing stays, whatever the call was doing; what it paints from there on is diffusers'."""
    before = snapshot(pipe)
    for turn in range(6):
        begun = threading.Event()

        def paint(begun=begun):
            def tell(pipe, i, t, tensors):
                begun.set()
                return tensors

            return call(pipe, num_inference_steps=STEPS, callback_on_step_end=tell)

        cf.enable(pipe, method)
        thread = threading.Thread(target=paint)
        thread.start()
        if turn % 2:
            begun.wait(60)
        cf.disable(pipe)
        thread.join()
        pipe.__dict__.update(_num_timesteps=1)  # of no interest
        names = before["pipe"] | {name for name in vars(pipe) if name.startswith("_")}
        assert_equal(snapshot(pipe) | {"pipe": names}, before | {"pipe": names})


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_an_interrupted_disable_is_finished_by_another(pipe, at, monkeypatch):
    before = snapshot(pipe)
    cf.enable(pipe)
    pipe.unet(torch.ones(1, 4, 16, 16), 1, torch.ones(1, 77, helpers.WIDTH))
    count = iter(range(10**6))
    own = patches._take_out

    def interrupted(*args):
        if next(count) == at:
            raise KeyboardInterrupt
        own(*args)

    monkeypatch.setattr(patches, "_take_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cf.disable(pipe)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    cf.disable(pipe)


def test_a_loop_may_call_the_unet_from_threads_of_its_own(pipe):
    """Time steps are set here, the UNet runs there: one run."""
    text = torch.cat(pipe.encode_prompt("words", "cpu", 1, True, "bad"))

    def loop(predict):
        pipe.scheduler.set_timesteps(4)
        x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        for t in pipe.scheduler.timesteps:
            u, c = predict(torch.cat([x, x]), t).chunk(2)
            x = pipe.scheduler.step(u + 4 * (c - u), t, x).prev_sample
        return x

    def here(x, t):
        with torch.no_grad():
            return pipe.unet(x, t, encoder_hidden_states=text).sample

    cf.enable(pipe, "composite")
    want = loop(here)
    assert relative(loop(lambda x, t: together(lambda: here(x, t))[0]), want) < RUN
    assert len(cf.summary(pipe).steps) == 4


def test_copies_are_taken_beside_a_call(pipe):
    cf.enable(pipe, "cmlora")
    want = call(pipe, num_inference_steps=STEPS)
    got, *copies = together(
        lambda: call(pipe, num_inference_steps=STEPS), *[lambda: copy.deepcopy(pipe.unet)] * 2
    )
    assert relative(got, want) < RUN
    assert all(isinstance(unet, diffusers.UNet2DConditionModel) for unet in copies)
