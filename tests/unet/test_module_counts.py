"""With N adapters every base layer of the UNet runs at most once per step."""

from collections import Counter

import cmlora_fast as cf
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ..support import adapters, helpers
from ..support.helpers import call
from ..support.uses import Uses, base_layers, count

NAMES = ["character_1", "style_1", "clothing_1", "background_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def pipe():
    return adapters.add_many(helpers.pipeline("sd", "one_layer"), NAMES, adapters.EVERYTHING)


def test_the_counter_counts(pipe):
    """Sequential PEFT calls use every weight N times per step: the counter sees them."""
    layers = base_layers(pipe)
    inputs = helpers.unet_inputs(pipe)
    with torch.no_grad(), Uses(layers) as uses:
        for _ in NAMES:
            pipe.unet(**inputs)
    assert set(uses.steps[0]) == set(layers)
    assert set(uses.steps[0].values()) == {len(NAMES)}


METHODS = [
    cf.Composite(),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(),
    cf.CMLoRA(variant="online", cache_interval=2),
    cf.CMLoRA(variant="async", cache_interval=2),
    cf.Switch(switch_step=2),
    cf.Merge(),
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_at_most_once_per_step(pipe, method, weights):
    """Folded convolutions may run once per adapter: with weights of their own, not the base's."""
    uses, calls = count(pipe, method, {"weights": weights})
    for step in (*uses, *calls):
        repeated = {name: times for name, times in step.items() if times > 1}
        assert not repeated
    assert any((*uses, *calls))


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_text_keys_and_values_once_per_image(pipe, method):
    """Constant over the steps; Switch has them once per adapter that becomes active."""
    uses, _ = count(pipe, method, {"weights": "delta"})
    total = sum(uses, Counter())
    text = [name for name in base_layers(pipe) if ".attn2.to_k" in name or ".attn2.to_v" in name]
    times = len(NAMES) if isinstance(method, cf.Switch) else 1
    assert len(text) > 10
    assert {total[name] for name in text} <= set(range(times + 1))


def test_shallow_steps_leave_the_deep_part_alone(pipe):
    uses, calls = count(pipe, cf.CMLoRA(cache_interval=4), {"weights": "delta"})
    deep = [f"down_blocks.{i}.resnets.0.conv1" for i in (2, 3)] + ["mid_block.resnets.0.conv1"]
    found = {name for name in base_layers(pipe) if any(d in name for d in deep)}
    assert len(found) == 3
    for i, step in enumerate(map(Counter.__add__, uses, calls)):
        assert all(bool(step[name]) == (i % 4 == 0) for name in found), i


def work_per_step(pipe) -> float:
    """Products of a step, whoever runs them; what is once per image or per fold cancels out."""
    totals = []
    for steps in (2, 2, 4):  # the first fills caches that live across calls
        with FlopCounterMode(display=False) as counter:
            call(pipe, num_inference_steps=steps)
        totals.append(counter.get_total_flops())
    return (totals[2] - totals[1]) / 2


WORK = [
    (cf.Composite(), 4),  # runs of one adapter
    (cf.CMLoRA(cache_interval=1), 4),
    (cf.Switch(switch_step=2), 1),
    (cf.Merge(), 1),
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize(("method", "runs"), WORK, ids=helpers.label)
def test_no_more_work_than_one_run_per_adapter(method, runs, weights):
    """A loop over subsets is fine, a row computed twice is not; low-rank products as PEFT's."""
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    pipe.set_adapters(NAMES if runs == 1 and isinstance(method, cf.Merge) else NAMES[:1])
    peft = work_per_step(pipe)
    pipe.disable_lora()
    base = work_per_step(pipe)
    pipe.enable_lora()
    pipe.set_adapters(NAMES)
    with cf.accelerate(pipe, method, weights=weights):
        ours = work_per_step(pipe)
    assert ours <= 1.05 * runs * (base if weights == "fold" else peft)


def test_cached_steps_cost_less(pipe):
    def work(method) -> int:
        with cf.accelerate(pipe, method, backend="torch"):  # oneDNN's products are not seen
            call(pipe, num_inference_steps=9)
            with FlopCounterMode(display=False) as counter:
                call(pipe, num_inference_steps=9)
        return counter.get_total_flops()

    assert work(cf.CMLoRA(cache_interval=3)) < 0.8 * work(cf.CMLoRA(cache_interval=1))
