"""What is allowed but doubtful: a warning, once per call, that says why."""

import warnings

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call

NAMES = ["character_1", "background_1"]


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES)


def warned(pipe, method, **given) -> list[str]:
    with warnings.catch_warnings(record=True) as caught, cf.accelerate(pipe, method):
        warnings.simplefilter("always")
        call(pipe, **given)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


CACHING = ["cmlora", cf.Composite(cache_interval=2), cf.Merge(cache_interval="nonuniform")]


@pytest.mark.parametrize("method", CACHING, ids=helpers.label)
def test_ancestral_scheduler_with_caching(pipe, method):
    pipe.scheduler = helpers.SCHEDULERS["euler_a"]()
    said = [text for text in warned(pipe, method) if "ncestral" in text]
    assert len(said) == 1


@pytest.mark.parametrize("method", CACHING, ids=helpers.label)
def test_few_steps_with_caching(pipe, method):
    said = [text for text in warned(pipe, method, num_inference_steps=7) if "7 steps" in text]
    assert len(said) == 1 and "8" in said[0]
    assert not warned(pipe, method, num_inference_steps=8)


@pytest.mark.parametrize("scheduler", ["euler_a", "ddim"])
@pytest.mark.parametrize("method", [None, "merge", "switch", "composite"])
def test_no_warning_without_caching(pipe, method, scheduler):
    pipe.scheduler = helpers.SCHEDULERS[scheduler]()
    ours = [text for text in warned(pipe, method, num_inference_steps=2) if "cach" in text]
    assert not ours


@pytest.mark.parametrize(
    ("method", "count"), [("switch", 1), ("cmlora", 1), ("composite", 0), (None, 0)]
)
@torch.no_grad()
def test_unet_call_outside_a_schedule(pipe, method, count):
    with warnings.catch_warnings(record=True) as caught, cf.accelerate(pipe, method):
        warnings.simplefilter("always")
        pipe.unet(**helpers.unet_inputs(pipe))
    assert len([w for w in caught if "set_timesteps" in str(w.message)]) == count


def test_warned_pipeline_is_as_before(pipe):
    before = call(pipe, num_inference_steps=3)
    warned(pipe, "cmlora", num_inference_steps=3)
    assert (call(pipe, num_inference_steps=3) == before).all()
