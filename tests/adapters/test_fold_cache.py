"""Folds outlive calls and methods, are never stale, and end where memory ends."""

import weakref

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.adapters import Execution, read_adapters, weights
from cmlora_fast.adapters.weights import WeightStore
from cmlora_fast.frontdoor import _engine_of

from ..support import adapters
from ..support.helpers import call, relative

A, B, C = NAMES = ["character_1", "style_1", "background_1"]
EACH = [(name,) for name in NAMES]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, adapters.ATTENTION)


@pytest.fixture
def folds(monkeypatch):
    """The number of weights that were folded, at any time."""
    made = []
    original = ops.lora_fold

    def counted(*args):
        made.append(args)
        return original(*args)

    monkeypatch.setattr(ops, "lora_fold", counted)
    return made


def prepare(store, pipe, subsets, mode="auto"):
    return store.prepare(read_adapters(pipe.unet), subsets, 1.0, Execution(weights=mode))


def layers(pipe):
    return len(read_adapters(pipe.unet).layers)


def test_a_subset_is_folded_once_for_every_method(pipe, folds):
    for method in ("composite", "cmlora", cf.Switch(switch_step=1), "composite"):
        cf.enable(pipe, method)
        call(pipe, num_inference_steps=3)
        assert len(folds) == 3 * layers(pipe)
    cf.enable(pipe)
    call(pipe, num_inference_steps=3)
    assert len(folds) == 4 * layers(pipe)  # the lossless mode needs one subset more
    base = sum(layer.base.weight.numel() * 4 for layer in read_adapters(pipe.unet).layers)
    assert cf.summary(pipe).weights["bytes"] == 4 * base


def test_only_folds_of_a_changed_adapter_are_made_again(pipe, folds):
    store = WeightStore()
    prepare(store, pipe, EACH)
    pipe.set_adapters(NAMES, [1.0, 0.5, 1.0])
    before = len(folds)
    made = prepare(store, pipe, EACH)
    assert len(folds) - before == layers(pipe)
    fresh = prepare(WeightStore(), pipe, EACH)
    for name in made:
        for got, want in zip(made[name].weights, fresh[name].weights, strict=True):
            assert torch.equal(got, want)


def test_subsets_that_agree_on_a_layer_share_its_fold(pipe, folds):
    adapters.add(pipe, "object_1", adapters.FEED_FORWARD)
    pipe.set_adapters([A, "object_1"])
    made = prepare(WeightStore(), pipe, [(A,), (A, "object_1")])
    attention = next(layer for name, layer in made.items() if name.endswith("to_q"))
    assert attention.weights[0] is attention.weights[1]
    assert len(folds) == len(made)


def test_folds_of_an_unloaded_adapter_go(pipe):
    store = WeightStore()
    prepare(store, pipe, EACH)
    size = store.report.bytes
    pipe.delete_adapters([C])
    pipe.set_adapters([A])
    prepare(store, pipe, [(A,)])
    assert store.report.bytes == pytest.approx(size * 2 / 3)


@pytest.mark.parametrize("room", [3, 2, 1])
def test_the_longest_unused_go_where_memory_ends(pipe, folds, monkeypatch, room):
    store = WeightStore()
    prepare(store, pipe, EACH)
    size = store.report.bytes // 3
    # Half of what is free without any fold holds so many subsets.
    memory = int(room * size / weights.MEMORY_SHARE)
    monkeypatch.setattr(weights, "_free_bytes", lambda device: memory - store.report.bytes)
    prepare(store, pipe, [(A,)])
    assert store.report.bytes == room * size
    before = len(folds)
    prepare(store, pipe, [(A,)])
    assert len(folds) == before
    assert store.report.mode == "fold"


def test_what_folds_hold_counts_as_free_for_the_next_call(pipe, monkeypatch):
    """A second call must not find too little memory because the first one's folds are there."""
    store = WeightStore()
    prepare(store, pipe, EACH)
    size = store.report.bytes
    monkeypatch.setattr(weights, "_free_bytes", lambda device: int(1.2 * size))
    prepare(store, pipe, EACH)
    assert store.report.mode == "fold"


def test_delta_keeps_no_folds(pipe):
    cf.enable(pipe, "composite", weights="fold")
    call(pipe, num_inference_steps=2)
    folded = cf.summary(pipe).weights["bytes"]
    cf.enable(pipe, "composite", weights="delta")
    got = call(pipe, num_inference_steps=2)
    assert cf.summary(pipe).weights["bytes"] < folded
    cf.enable(pipe, "composite", weights="fold")
    assert relative(got, call(pipe, num_inference_steps=2)) < 1e-4


def test_disable_frees_the_folds(pipe):
    cf.enable(pipe, "composite")
    call(pipe, num_inference_steps=2)
    engine = _engine_of(pipe)
    made = [weakref.ref(w) for f in engine._executor._state.weights.values() for w in f.weights]
    cf.disable(pipe)
    assert made and not any(weight() is not None for weight in made)


def test_a_layer_that_no_row_touches_stays_as_it_is(pipe):
    """An active adapter without a row of its own: its layers run the base."""
    adapters.add(pipe, "object_1", adapters.FEED_FORWARD)
    pipe.set_adapters([A, "object_1"])
    for mode in ("fold", "delta"):
        made = prepare(WeightStore(), pipe, [(A,)], mode)
        assert made and not any("ff.net" in name for name in made)
