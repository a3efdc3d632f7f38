"""A GPU's form of a step, on the CPU: equal to the CPU's own, in few launches, in one layout."""

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast.benchmarks.models import call_inputs, load_adapters, sd_pipeline, sdxl_pipeline

from ..support import adapters, helpers, launches
from ..support.helpers import call, relative

NAMES = ["character_1", "style_1", "background_1"]
ROUNDING = 1e-5
MOST_LAUNCHES = 800  # of a step of SD 1.5; the compiled plain pipeline has 724
EAGER = dict(graphs="off")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = [
    None,
    cf.Switch(switch_step=2, cache_interval=2),
    cf.Composite(),
    cf.CMLoRA(cache_interval=2),
    cf.CMLoRA(variant="online", cache_interval=2),
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("targets", [adapters.ATTENTION, adapters.EVERYTHING], ids=["some", "all"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_the_same_image(method, targets, weights, monkeypatch):
    pipe = adapters.fresh(NAMES, targets)
    with cf.accelerate(pipe, method, weights=weights):
        want = call(pipe, num_inference_steps=3)
    launches.pretend(monkeypatch)
    with cf.accelerate(pipe, method, weights=weights, **EAGER):
        got, again = (call(pipe, num_inference_steps=3) for _ in range(2))
    assert relative(got, want) < ROUNDING
    assert torch.equal(got, again)


PAIRS = [
    *(("sd", scheduler) for scheduler in helpers.SCHEDULERS),
    *((kind, "ddim") for kind in helpers.KINDS[1:]),
]


@pytest.mark.parametrize(("kind", "scheduler"), PAIRS)
def test_every_kind_of_pipeline(kind, scheduler, monkeypatch):
    pipe = adapters.add_many(helpers.pipeline(kind), NAMES[:2], adapters.EVERYTHING)
    pipe.scheduler = helpers.SCHEDULERS[scheduler]()
    size = dict(num_inference_steps=3, num_images_per_prompt=2, height=144)  # halves are odd
    with cf.accelerate(pipe):
        want = call(pipe, **size)
    launches.pretend(monkeypatch)
    with cf.accelerate(pipe, **EAGER):
        got = call(pipe, **size)
    assert relative(got, want) < 10 * ROUNDING  # along a trajectory


def test_hooks_are_heard(monkeypatch):
    """What a fused form would pass by runs as the module that it is."""
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    want, heard = call(pipe, num_inference_steps=2), []
    launches.pretend(monkeypatch)
    modules = dict(pipe.unet.named_modules())
    names = [
        name for name in modules if name.endswith(("norm1", "conv1", "conv2", "norm3", "to_q"))
    ]
    for name in names:
        modules[name].register_forward_hook(lambda m, i, o, name=name: heard.append(name))
    with cf.accelerate(pipe):
        got = call(pipe, num_inference_steps=2)
    assert set(heard) == set(names) and len(heard) == 2 * len(names)
    assert relative(got, want) < 10 * ROUNDING


def test_base_weights_that_change_are_copied_anew(monkeypatch):
    """Also by writes of which no version tells."""
    pipe = adapters.fresh(NAMES)
    launches.pretend(monkeypatch)
    convolution = pipe.unet.down_blocks[0].resnets[0].conv1
    with cf.accelerate(pipe):
        call(pipe, num_inference_steps=3)
        convolution.weight.data.mul_(1.5)
        got = call(pipe, num_inference_steps=3)
    assert relative(got, call(pipe, num_inference_steps=3)) < 10 * ROUNDING


@pytest.fixture(scope="module")
def narrow():
    """SD 1.5 and SDXL with all of their layers, at toy width."""
    sd, xl = sd_pipeline((32, 32, 64, 64)), sdxl_pipeline((64, 64, 64))
    return {"SD 1.5": (sd, 8), "SDXL": (xl, 16)}


@pytest.mark.parametrize("model", ["SD 1.5", "SDXL"])
def test_launches_of_a_lossless_step(model, narrow, monkeypatch):
    pipe, size = narrow[model]
    load_adapters(pipe, 2, rank=4)
    recordings = launches.pretend(monkeypatch)
    with cf.accelerate(pipe):
        pipe(**call_inputs(pipe, size, 3))
    (step,) = recordings
    count = launches.launches(step.calls)
    assert launches.changes_of_layout(step.calls) == []
    assert sum(count.values()) < (MOST_LAUNCHES if model == "SD 1.5" else 2 * MOST_LAUNCHES), count
