"""Refresh steps, and the corrected schedules worked out by hand."""

import math

import pytest
from cmlora_fast.methods.cached import CMLoRA, Composite, Merge, Switch
from cmlora_fast.schedule.corrected import partition, plan
from cmlora_fast.schedule.refresh import refresh_steps
from cmlora_fast.schedule.stepplan import Walk

from ..support.plans import H4, dominants, full_steps, positions


@pytest.mark.parametrize(
    "T, ends, count",
    [(220, (82, 192), 92), (200, (75, 175), 85), (100, (37, 87), 43), (50, (18, 43), 22),
     (20, (7, 17), 10)],
)  # fmt: skip
def test_nonuniform_refresh_steps(T, ends, count):
    a, b = ends
    expected = {*range(0, a, 2), *range(a, b, 3), *range(b, T, 2)}
    steps = refresh_steps(CMLoRA(), T)
    assert steps == expected
    assert len(steps) == count


@pytest.mark.parametrize("k, count", [(1, 220), (2, 110), (3, 74), (5, 44)])
def test_uniform_refresh_steps(k, count):
    steps = refresh_steps(Merge(cache_interval=k), 220)
    assert steps == set(range(0, 220, k))
    assert len(steps) == count


@pytest.mark.parametrize(
    "T, k, center, power, head, tail",
    [
        (50, 5, 15, 1.4, [0, 5, 9, 13, 17, 21, 26, 31, 37, 43], []),
        (220, 5, 15, 1.4, [0, 3, 5, 8, 10, 13, 15, 18, 21, 24, 28, 31, 35, 39, 43, 48],
         [191, 198, 205, 212]),
        (220, 3, 120, 1.2, [0, 4, 7, 11, 14, 17, 21, 24, 27, 30], [200, 203, 207, 210, 213, 216]),
    ],
)  # fmt: skip
def test_centred_refresh_steps(T, k, center, power, head, tail):
    method = Merge(cache_interval=k, uniform=False, center=center, pow=power)
    steps = sorted(refresh_steps(method, T))
    assert steps[: len(head)] == head
    assert len(steps) == math.ceil(T / k)
    if tail:
        assert steps[-len(tail) :] == tail


@pytest.mark.parametrize("T", [1, 2, 3, 7])
@pytest.mark.parametrize("interval", ["nonuniform", 2, 5, 100])
def test_short_runs_are_cut_to_what_fits(T, interval):
    steps = refresh_steps(Merge(cache_interval=interval), T)
    assert 0 in steps
    assert max(steps) < T


def test_center_and_pow_without_a_schedule_are_an_error():
    method = Merge(cache_interval=2, uniform=False, center=5, pow=1.4)
    with pytest.raises(ValueError, match=r"Merge\.pow.*center=5.*1\.4"):
        plan(method, ["a"], 10)


# --- released behaviour (spec §1.5, §1.7) ---------------------------------------------------


def test_default_offline_background_joins_at_the_next_schedule_step():
    """T=10, interval 2: S = 0 2 4 6 8; early is i < 6; tail = order[1:]; turn = i / 2."""
    order = ["character_1", "style_1", "background_1"]
    run = plan(CMLoRA(cache_interval=2), order, 10)
    # turns 0 1 2 early over (0, 1): 0 1 0; turns 3 4 late over (1, 2): index 3 % 2, 4 % 2: 2 1
    assert positions(run, order) == [0, 0, 1, 1, 0, 0, 2, 2, 1, 1]
    assert [s.stage for s in run.steps] == [True] * 6 + [False] * 4
    assert full_steps(run, 0) == [0, 4]
    assert full_steps(run, 1) == [0, 2, 8]
    assert full_steps(run, 2) == [0, 6]
    # c = 2.5, then - 1/2, - 1/4, - 1/8 and - 1/16 by turn
    for i, c in [(0, 2.5), (2, 2.0), (4, 1.75), (6, 1.625), (8, 1.5625)]:
        assert max(run.steps[i].early.weights) == pytest.approx(c / (c + 2))
        assert sum(run.steps[i].early.weights) == pytest.approx(1)


def test_default_offline_stage_waits_for_a_schedule_step():
    """T=10, interval 4: S = 0 4 8; early is i < 6, but the change waits for step 8."""
    order = ["character_1", "style_1", "background_1"]
    run = plan(CMLoRA(cache_interval=4), order, 10)
    assert [s.stage for s in run.steps] == [True] * 8 + [False] * 2
    assert positions(run, order) == [0] * 4 + [1] * 4 + [1] * 2  # late turn 2: tail[2 % 2]


def test_late_low_only():
    run = plan(CMLoRA(cache_interval=2, late="low_only"), ["background_1", *H4], 10)
    assert run.subsets[-1] == ("background_1",)
    assert dominants(run)[6:] == ["background_1"] * 4


def test_decay_has_a_floor_and_can_be_frozen():
    live = plan(CMLoRA(cache_interval=1, dominant_coeff=1.25), ["a", "b"], 6)
    assert [max(s.early.weights) for s in live.steps] == pytest.approx([1.25 / 2.25] + [0.5] * 5)
    frozen = plan(CMLoRA(cache_interval=1, decay="frozen"), ["a", "b"], 6)
    assert {max(s.early.weights) for s in frozen.steps} == {0.6}
    low = plan(CMLoRA(cache_interval=1, coeff_floor=1.4), ["a", "b"], 6)
    assert max(low.steps[5].early.weights) == pytest.approx(1.4 / 2.4)


def test_default_async_starts_with_the_first_and_refreshes_the_dominant():
    """T=20: the lead changes every 2 steps; interval 3: refreshes at S and at changes."""
    run = plan(CMLoRA(variant="async", cache_interval=3), ["a", "b", "c"], 20)
    assert dominants(run)[:8] == ["a", "a", "b", "b", "c", "c", "a", "a"]
    assert full_steps(run, 0)[:4] == [0, 6, 12, 18]
    assert full_steps(run, 1)[:5] == [0, 2, 3, 8, 9]  # changes at 2 and 8, S has 3 and 9
    assert full_steps(run, 2)[:3] == [0, 4, 10]
    assert [s.stage for s in run.steps] == [None] * 20
    assert max(run.steps[2].early.weights) == pytest.approx(2.0 / 4.0)  # c = 2.5 - 1/2


def test_async_changes_with_few_steps():
    run = plan(CMLoRA(variant="async", cache_interval=1), ["a", "b"], 4)  # round(0.4) = 0 -> 1
    assert dominants(run) == ["a", "b", "a", "b"]


def test_one_empty_list_is_one_pool():
    for names in (["a", "b"], ["background_1", "background_2"]):
        run = plan(CMLoRA(cache_interval=1), names, 10)
        assert dominants(run) == names * 5


def test_dominant_full_every_step():
    run = plan(CMLoRA(cache_interval=2, dominant_full="every_step"), ["a", "b"], 4)
    assert [s.early.refresh for s in run.steps] == [(1, 1), (1, 0), (1, 1), (0, 1)]


def test_interval_1_refreshes_all_and_still_moves():
    run = plan(CMLoRA(cache_interval=1), ["a", "b"], 4)
    assert dominants(run) == ["a", "b", "a", "b"]
    assert all(all(s.early.refresh) for s in run.steps)
    assert not run.reuse


def test_online_latches_and_decides_at_schedule_steps_only():
    order = ["a", "b", "background_1"]
    readings = [None, 0.1, 0.9, 0.1, 0.1, 0.9, 0.9, 0.9]
    walk = Walk(plan(CMLoRA(variant="online", cache_interval=2), order, 8))
    stages = [walk.choose(i, m)[1] for i, m in enumerate(readings)]
    assert stages == [True, True, True, True, False, False, False, False]
    free = Walk(plan(CMLoRA(variant="online", cache_interval=2, latch=False), order, 8))
    assert [free.choose(i, m)[1] for i, m in enumerate(readings)][6:] == [True, True]


def test_online_nan_falls_back_to_the_step_rule():
    walk = Walk(plan(CMLoRA(variant="online", cache_interval=1), ["a", "background_1"], 10))
    stages = [walk.choose(i, float("nan") if i else None)[1] for i in range(10)]
    assert stages == [True] * 6 + [False] * 4


def test_max_age_refreshes_old_caches():
    walk = Walk(plan(CMLoRA(cache_interval=4, max_age=2), ["a", "b"], 8))
    refreshed = [walk.choose(i)[0].refresh for i in range(8)]
    assert refreshed[0] == (True, True)
    assert refreshed[3] == (True, True)  # age 3 > 2
    assert refreshed[4] == (False, True)  # turn 1
    assert refreshed[6] == (True, False)


def test_switch_by_the_paper():
    run = plan(Switch(switch_step=2), ["a", "b", "c"], 8)
    assert [s.groups[0] for s in run.steps] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert dominants(run)[:3] == ["a", "a", "b"]


def test_switch_drops_the_cache_of_an_adapter_that_becomes_active():
    run = plan(Switch(switch_step=3, cache_interval=4), ["a", "b"], 8)
    assert [i for i, s in enumerate(run.steps) if s.early.refresh[0]] == [0, 3, 4, 6]
    shared = plan(Switch(switch_step=3, cache_interval=4, reference_compat=True), ["a", "b"], 8)
    assert [i for i, s in enumerate(shared.steps) if s.early.refresh[0]] == [0, 4]


def test_switch_partition():
    run = plan(Switch(switch_step=2, partition=True), ["background_1", "a", "b"], 10)
    assert dominants(run) == ["a", "a", "b", "b", "a", "a"] + ["background_1"] * 4
    assert [s.stage for s in run.steps] == [True] * 6 + [False] * 4


def test_composite_refreshes_everyone_with_equal_weights():
    run = plan(Composite(cache_interval=3), ["a", "b"], 5)
    assert [s.early.refresh for s in run.steps] == [(i in (0, 3),) * 2 for i in range(5)]
    assert run.steps[0].early.weights == (0.5, 0.5)


def test_no_adapter_is_plain_feature_caching():
    for method in (Merge(cache_interval=2), CMLoRA(cache_interval=2), Switch(cache_interval=2)):
        run = plan(method, [], 4)
        assert run.subsets == ((),)
        assert [s.early.refresh for s in run.steps] == [(True,), (False,), (True,), (False,)]


def test_partition_by_name_and_by_choice():
    assert partition(["background_9", "x"], None) == (["x"], ["background_9"])
    assert partition(["background_9", "x"], ["x"]) == (["background_9"], ["x"])
