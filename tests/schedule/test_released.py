"""Golden schedules of the published method, defects included."""

import pytest
from cmlora_fast.methods.cached import CMLoRA, Switch
from cmlora_fast.schedule.corrected import plan
from cmlora_fast.schedule.stepplan import Walk

from ..support.plans import ALL5, H4, full_steps, positions


def released(adapters, T=220, **fields):
    return plan(CMLoRA(reference_compat=True, **fields), adapters, T)


def test_released_two_high_one_low_interval_2():
    order = ["character_1", "style_1", "background_1"]
    d = positions(released(order, cache_interval=2), order)
    assert d[:8] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert d[108:132] == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2]


def test_released_four_high_one_low_interval_3():
    run = released(ALL5, cache_interval=3)
    d = positions(run, ALL5)
    assert d[:12] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert d[108:132] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert full_steps(run, 0) == list(range(0, 121, 12))
    assert full_steps(run, 1) == [0, *range(3, 112, 12)]
    assert full_steps(run, 2) == [0, *range(6, 115, 12)]
    assert full_steps(run, 3) == [0, *range(9, 118, 12)]
    assert full_steps(run, 4) == [0]
    assert sum(sum(step.early.refresh) for step in run.steps) == 45


def test_released_nonuniform_never_reuses():
    run = released(ALL5)
    d = positions(run, ALL5)
    assert d[:8] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert d[108:132] == [1, 2, 2, 2, 3, 3, 3, 0, 0, 0, 1, 1, 1, 3, 3, 3, 4, 4, 4, 1, 1, 1, 2, 2]
    assert not run.reuse
    assert all(all(step.early.refresh) for step in run.steps)


@pytest.mark.parametrize("interval", [1, 2, 5, "nonuniform"])
def test_released_one_high_one_low(interval):
    order = ["character_1", "background_1"]
    d = positions(released(order, cache_interval=interval), order)
    assert d == [0] * 121 + [1] * 99


def test_released_async_starts_with_the_last_and_refreshes_the_next():
    order = ["character_1", "style_1", "background_1"]
    run = released(order, variant="async", cache_interval=2)
    assert positions(run, order)[:80] == [2] * 20 + [0] * 20 + [1] * 20 + [2] * 20
    assert full_steps(run, 0)[:12] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 62]
    assert full_steps(run, 1)[:4] == [0, 22, 24, 26]


def test_released_table_drops_unknown_adapters_and_the_shares_fall_short():
    run = released(["character_1", "mystery", "style_1"], cache_interval=2)
    assert run.subsets == (("character_1",), ("style_1",))
    assert run.steps[0].early.weights == pytest.approx((2.5 / 4.5 * 1.5, 1 / 4.5 * 1.5))


def test_released_weights_of_n_adapters():
    for adapters, led, other in [(ALL5[:2], 0.6, 0.4), (ALL5[:3], 0.55556, 0.22222),
                                 (H4, 0.53846, 0.15385), (ALL5, 0.52941, 0.11765)]:  # fmt: skip
        weights = released(adapters, cache_interval=2).steps[0].early.weights
        assert weights[0] == pytest.approx(led, abs=1e-5)
        assert weights[1:] == pytest.approx((other,) * (len(adapters) - 1), abs=1e-5)
        assert sum(weights) == pytest.approx(1)


def test_released_without_guidance_keeps_only_the_last_prediction():
    run = plan(CMLoRA(reference_compat=True), ["style_1", "character_1"], 4, guided=False)
    assert run.steps[0].early.weights == (0.0, 1.0)


def test_released_online_is_late_after_a_nan_and_may_flip_back():
    order = ["character_1", "style_1", "background_1"]
    walk = Walk(released(order, variant="online", cache_interval=2, T=6))
    readings = [None, float("nan"), 0.5, 0.3, 0.9, 0.1]
    chosen = [walk.choose(i, m) for i, m in enumerate(readings)]
    assert [stage for _, stage in chosen] == [True, False, True, False, True, False]
    # turns 1 1 2 2 3 3: early (turn-1) mod 2, late one further
    assert [order.index(c.dominant) for c, _ in chosen] == [0, 1, 1, 2, 0, 1]
    assert chosen[2][0].refresh == (False, True, False)
    assert chosen[3][0].refresh == (False, False, False)


def test_released_background_alone_is_refused():
    with pytest.raises(ValueError, match="high-frequency"):
        released(["background_1"])


def test_released_switch_keeps_the_first_adapter_one_step_longer():
    run = plan(Switch(switch_step=2, reference_compat=True), ["a", "b", "c"], 10)
    assert [s.groups[0] for s in run.steps] == [0, 0, 0, 1, 1, 2, 2, 0, 0, 1]


# --- corrected defaults, worked out by hand -------------------------------------------------
