"""``disable`` leaves everything as it was, bit for bit, whatever happened in between."""

import inspect

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call
from ..support.snapshot import assert_equal, models, snapshot

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAMES = ["character_1", "style_1", "background_1"]


def loaded():
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING, text=True)
    pipe.set_adapters(NAMES[:2], [0.8, 1.0])
    return pipe


@pytest.fixture
def pipe():
    return loaded()


def run(pipe, **given):
    return call(pipe, num_inference_steps=3, **given)


RUNS = [
    (None, {}),
    (None, dict(weights="delta")),
    ("merge", {}),
    ("switch", dict(weights="fold")),
    ("composite", {}),
    ("cmlora", dict(weights="fold", max_rows=1)),
    ("cmlora", dict(weights="delta", record=True)),
    (cf.CMLoRA(variant="online", cache_interval=2), {}),
]


@pytest.mark.parametrize(("method", "options"), RUNS, ids=helpers.label)
def test_enable_run_disable(pipe, method, options):
    image = run(pipe)  # before the snapshot: a call itself sets attributes of the pipeline
    before = snapshot(pipe)
    assert cf.enable(pipe, method, **options) is pipe
    run(pipe)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    assert torch.equal(run(pipe), image)


def test_enable_alone_changes_no_parameter(pipe):
    before = snapshot(pipe)
    cf.enable(pipe)
    now = snapshot(pipe)
    for part in models(pipe):
        for name, (pointer, _, tensor) in before[part].items():
            assert now[part][name][0] == pointer and torch.equal(now[part][name][2], tensor), name
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)


def test_signatures_are_equal_while_enabled_and_after(pipe):
    def signatures():
        functions = (pipe.encode_prompt, pipe.unet.forward, pipe.scheduler.step, pipe.__call__)
        return [inspect.signature(function) for function in functions]

    before = signatures()
    cf.enable(pipe, "cmlora")
    assert signatures() == before
    run(pipe)
    assert signatures() == before
    cf.disable(pipe)
    assert signatures() == before


class Failure(Exception):
    pass


@pytest.mark.parametrize("error", [Failure, KeyboardInterrupt])  # a bug in a callback; Ctrl-C
@pytest.mark.parametrize("method", [None, "switch", "cmlora"])
def test_exception_in_a_callback(pipe, method, error):
    image = run(pipe)
    before = snapshot(pipe)

    def fail(pipe, i, t, tensors):
        if i == 1:
            raise error
        return {}

    cf.enable(pipe, method)
    whole = run(pipe)
    with pytest.raises(error):
        run(pipe, callback_on_step_end=fail)
    assert torch.equal(run(pipe), whole)  # nothing of the broken call is left in the next
    with pytest.raises(error):
        run(pipe, callback_on_step_end=fail)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    assert torch.equal(run(pipe), image)


def test_exception_inside_the_unet(pipe):
    image = run(pipe)
    before = snapshot(pipe)
    cf.enable(pipe, "composite")
    with pytest.raises(RuntimeError):
        run(
            pipe,
            prompt_embeds=torch.zeros(1, 77, 5),
            prompt=None,
            negative_prompt=None,
            guidance_scale=1.0,
        )
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    assert torch.equal(run(pipe), image)


CHANGES = [
    lambda pipe: pipe.set_adapters(["background_1"], [0.3]),
    lambda pipe: pipe.delete_adapters(["style_1"]),
    lambda pipe: pipe.unload_lora_weights(),
    lambda pipe: pipe.disable_lora(),
    lambda pipe: adapters.add(pipe, "object_1"),
    lambda pipe: setattr(pipe, "scheduler", helpers.SCHEDULERS["euler"]()),
    lambda pipe: cf.enable(pipe, "switch"),
    lambda pipe: cf.enable(pipe, cf.CMLoRA(cache_interval=3), weights="delta"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_while_enabled(pipe, change):
    """After ``disable`` the pipeline is one to which only the change itself happened."""
    other = loaded()
    cf.enable(pipe)
    run(pipe)
    change(pipe)
    run(pipe)
    cf.disable(pipe)
    change(other)
    cf.disable(other)
    run(other)
    run(pipe)
    mine, plain = snapshot(pipe), snapshot(other)
    assert mine["pipe"] == plain["pipe"]
    assert mine["scheduler"] == plain["scheduler"]
    assert mine["modules"].keys() == plain["modules"].keys()
    for where, module in plain["modules"].items():
        for key in ("type", "attributes", "hooks", "scaling", "active"):
            assert mine["modules"][where][key] == module[key], (where, key)
    assert torch.equal(run(pipe), run(other))


def test_the_old_scheduler_is_restored_too(pipe):
    old = pipe.scheduler
    before = set(vars(old))
    cf.enable(pipe)
    run(pipe)
    pipe.scheduler = helpers.SCHEDULERS["euler"]()
    run(pipe)
    cf.disable(pipe)
    assert "step" not in vars(old) and "step" not in vars(pipe.scheduler)
    assert set(vars(old)) == before


def test_second_enable_replaces_the_method(pipe):
    cf.enable(pipe, "composite")
    composite = run(pipe)
    cf.enable(pipe, "switch")
    switch = run(pipe)
    cf.enable(pipe, "composite")
    assert torch.equal(run(pipe), composite)
    assert not torch.equal(switch, composite)
    cf.disable(pipe)  # once is enough
    assert "forward" not in vars(pipe.unet)


def test_accelerate_nests(pipe):
    with cf.accelerate(pipe, "composite") as inside:
        assert inside is pipe
        composite = run(pipe)
        with cf.accelerate(pipe, cf.Switch(switch_step=1)):
            switch = run(pipe)
        assert torch.equal(run(pipe), composite)
        with pytest.raises(Failure), cf.accelerate(pipe, "merge"):
            raise Failure
        assert torch.equal(run(pipe), composite)
    assert not torch.equal(switch, composite)
    assert "forward" not in vars(pipe.unet)


def test_disable_is_a_no_op_when_not_enabled(pipe):
    run(pipe)
    before = snapshot(pipe)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    cf.enable(pipe)
    cf.disable(pipe)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)


def test_summary_before_a_call_and_after_disable(pipe):
    assert list(cf.summary(pipe).steps) == []
    cf.enable(pipe, "composite")
    assert list(cf.summary(pipe).steps) == []
    run(pipe)
    cf.disable(pipe)
    assert len(cf.summary(pipe).steps) == 3
    assert list(cf.summary(pipe).adapters) == NAMES[:2]


def test_encoding_a_prompt_by_hand_leaves_nothing(pipe):
    run(pipe)
    before = snapshot(pipe)
    cf.enable(pipe, "cmlora")
    pipe.encode_prompt("a fox", "cpu", 1, True)
    cf.disable(pipe)
    assert_equal(snapshot(pipe), before)
    assert pipe.num_timesteps == 3


def test_two_pipelines_do_not_see_each_other(pipe):
    other = adapters.fresh(["character_1", "a"])
    alone = run(other)
    with cf.accelerate(pipe, "cmlora"):
        run(pipe)
        assert torch.equal(run(other), alone)
    assert list(cf.summary(other).steps) == []
