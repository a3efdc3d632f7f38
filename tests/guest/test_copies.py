"""Copies and pickles of enabled pipelines, what is hooked above us, schedulers that are shared."""

import copy
import io
import pickle

import cmlora_fast as cf
import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module

from ..support import adapters, helpers
from ..support.helpers import call, relative
from ..support.snapshot import assert_equal, snapshot

RUN = 1e-4
STEPS = 3
METHODS = [None, cf.Composite(), cf.CMLoRA()]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING)


def used(pipe, method=None):
    cf.enable(pipe, method)
    call(pipe, num_inference_steps=STEPS)
    return pipe


def pickled(what):
    return pickle.loads(pickle.dumps(what))


def saved(what):
    file = io.BytesIO()
    torch.save(what, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_copied_pipeline_is_plain_and_works(pipe, method):
    want = call(pipe, num_inference_steps=STEPS)
    other = copy.deepcopy(used(pipe, method))
    assert not cf.summary(other).steps
    assert torch.equal(call(other, num_inference_steps=STEPS), want)
    cf.disable(other)
    assert torch.equal(call(other, num_inference_steps=STEPS), want)
    other.set_adapters(["style_1"])
    alone = call(other, num_inference_steps=STEPS)
    assert relative(alone, want) > RUN
    cf.enable(other)
    assert relative(call(other, num_inference_steps=STEPS), alone) < RUN
    assert cf.summary(other).adapters == ("style_1",)
    cf.disable(other)
    assert torch.equal(call(other, num_inference_steps=STEPS), alone)
    assert len(cf.summary(pipe).steps) == STEPS
    assert relative(used(pipe).unet(*one()).sample, other_unet(pipe)(*one()).sample) < RUN


def one():
    return torch.ones(1, 4, 16, 16), 1, torch.ones(1, 77, helpers.WIDTH)


def other_unet(pipe):
    return copy.deepcopy(pipe).unet


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("part", ["unet", "scheduler"])
def test_a_copied_part_is_its_own(pipe, part, copied):
    used(pipe)
    other = copied(getattr(pipe, part))
    if part == "scheduler":
        other.set_timesteps(9)
        assert len(pipe.scheduler.timesteps) == STEPS
        fresh = adapters.fresh(["character_1"])
        want = call(fresh, num_inference_steps=5)
        fresh.scheduler = other
        assert relative(call(fresh, num_inference_steps=5), want) < RUN
        assert len(cf.summary(pipe).steps) == STEPS
        return
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(*one()).sample.any()
        assert pipe.unet(*one()).sample.any()


def test_copies_within_a_call(pipe):
    """Of CLoRA's too, whose layers have other processors meanwhile."""
    copies = []

    def take(pipe, i, t, tensors):
        copies.append(copy.deepcopy(pipe.unet))
        return tensors

    want = pipe.unet(*one()).sample
    for method in METHODS:
        cf.enable(pipe, method)
        call(pipe, num_inference_steps=2, callback_on_step_end=take)
    for unet in copies:
        assert relative(unet(*one()).sample, want) < RUN


def test_a_copy_runs_as_fast_as_its_original(pipe):
    """Nothing on it looks like somebody else's."""
    other = copy.deepcopy(used(pipe))
    used(other, cf.Merge(cache_interval=2))
    assert cf.summary(other).cache["used"]


def test_offloading_before_and_after(pipe):
    want, before = call(pipe, num_inference_steps=STEPS), snapshot(pipe)
    used(pipe)
    _, _ = cpu_offload_with_hook(pipe.unet, execution_device=torch.device("cpu"))
    assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
    for _ in range(2):
        cf.disable(pipe)
        assert torch.equal(call(pipe, num_inference_steps=STEPS), want)
        used(pipe)
        assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
        assert len(cf.summary(pipe).steps) == STEPS
    cf.disable(pipe)
    remove_hook_from_module(pipe.unet)
    vars(pipe.unet).pop("forward")  # accelerate leaves the method that it found
    assert torch.equal(call(pipe, num_inference_steps=STEPS), want)
    assert_equal(snapshot(pipe), before)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_shared_scheduler_is_restored_in_any_order(pipe, order):
    pipes = [pipe, adapters.fresh(["character_1"])]
    pipes[1].scheduler = pipe.scheduler
    want, before = [call(p, num_inference_steps=STEPS) for p in pipes], set(vars(pipe.scheduler))
    for p in pipes:
        cf.enable(p)
    for p, image in zip(pipes, want, strict=True):
        assert relative(call(p, num_inference_steps=STEPS), image) < RUN
        assert len(cf.summary(p).steps) == STEPS
    cf.disable(pipes[order[0]])
    other = pipes[order[1]]
    assert relative(call(other, num_inference_steps=STEPS), want[order[1]]) < RUN
    assert len(cf.summary(other).steps) == STEPS
    cf.disable(other)
    assert set(vars(pipe.scheduler)) == before


def test_whoever_kept_a_hook_of_ours_may_call_it_later(pipe):
    want = call(pipe, num_inference_steps=STEPS)
    used(pipe)
    ours = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    cf.disable(pipe)
    assert torch.equal(call(pipe, num_inference_steps=STEPS), want)
    used(pipe)
    assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN
