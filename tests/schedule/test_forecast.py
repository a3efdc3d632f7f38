"""Which steps run, and for whom, where predictions are forecast: worked out by hand."""

import cmlora_fast as cf
import pytest
from cmlora_fast.schedule import FEWEST_STEPS, follows_steps, plan, real_steps, reuses

WINDOWS = {  # T: after four, every second, second, third, third, fourth, fourth ...; the last tenth
    12: [0, 1, 2, 3, 5, 7, 10, 11],
    20: [0, 1, 2, 3, 5, 7, 10, 13, 17, 18, 19],
    25: [0, 1, 2, 3, 5, 7, 10, 13, 17, 21, 22, 23, 24],
    30: [0, 1, 2, 3, 5, 7, 10, 13, 17, 21, 26, 27, 28, 29],
    40: [0, 1, 2, 3, 5, 7, 10, 13, 17, 21, 26, 31, 36, 37, 38, 39],
}
EVERY = {
    (20, 2): [0, 1, 2, 3, 5, 7, 9, 11, 13, 15, 17, 18, 19],
    (20, 3): [0, 1, 2, 3, 6, 9, 12, 15, 18, 19],
    (30, 4): [0, 1, 2, 3, 7, 11, 15, 19, 23, 27, 28, 29],
    (20, 50): [0, 1, 2, 3, 18, 19],
}
NAMES = ["a", "b", "background"]


def runs(made):
    """The groups that run, by step."""
    return [
        [g for j, g in enumerate(step.groups) if step.real is None or step.real[j]]
        for step in made.steps
    ]


@pytest.mark.parametrize("interval", [1, "nonuniform"])
@pytest.mark.parametrize("T", WINDOWS)
def test_the_window_grows(T, interval):
    assert sorted(real_steps(cf.Merge(cache="forecast", cache_interval=interval), T)) == WINDOWS[T]


@pytest.mark.parametrize("T, k", EVERY)
def test_one_in_k(T, k):
    assert sorted(real_steps(cf.Merge(cache="forecast", cache_interval=k), T)) == EVERY[T, k]


@pytest.mark.parametrize("T", [1, 2, 3, FEWEST_STEPS - 1])
def test_few_steps_all_run(T):
    assert len(real_steps(cf.Merge(cache="forecast", cache_interval=5), T)) == T


@pytest.mark.parametrize("kind", [cf.Merge, cf.Composite, cf.CMLoRA])
def test_a_skipped_step_runs_nobody(kind):
    made = plan(kind(cache="forecast"), NAMES, 20)
    everyone = list(made.steps[0].groups)
    assert runs(made) == [everyone if i in WINDOWS[20] else [] for i in range(20)]
    assert not made.reuse and all(all(step.early.refresh) for step in made.steps)


def test_dominance_moves_at_steps_that_run():
    made = plan(cf.CMLoRA(cache="forecast", stage_fraction=1.0), [*"abc", "background"], 12)
    dominants = [step.early.dominant for step in made.steps]
    assert dominants == [*"abca", "a", "b", "b", "c", "c", "c", "a", "b"]


def test_switch_forecasts_an_adapter_from_its_own_predictions():
    made = plan(cf.Switch(cache="forecast", switch_step=5), ["a", "b"], 20)
    for i, step in enumerate(made.steps):
        if step.real is not None:
            own = [j for j in range(i) if made.steps[j].real is None]
            assert all(made.steps[j].groups == step.groups for j in own[-2:])
    assert [i for i, step in enumerate(made.steps) if step.real is None] == [
        *[0, 1, 2, 3],
        *[5, 6, 7],
        *[10, 11, 13],
        *[15, 16, 17, 18, 19],
    ]
    always = plan(cf.Switch(cache="forecast", switch_step=2), ["a", "b"], 20)
    assert all(step.real is None for step in always.steps)


@pytest.mark.parametrize("kind", [cf.Composite, cf.CMLoRA])
def test_a_relay(kind):
    """Two steps of all, then in turn."""
    made = plan(kind(cache="relay"), NAMES, 9)
    assert runs(made) == [[0, 1, 2], [0, 1, 2], [0], [1], [2], [0], [1], [2], [0]]
    made = plan(kind(cache="relay", cache_interval=2), NAMES, 6)
    assert runs(made) == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 2], [1, 2], [0, 1]]
    for interval in (3, 7):
        made = plan(kind(cache="relay", cache_interval=interval), NAMES, 5)
        assert all(step.real is None for step in made.steps)


def test_a_relay_has_the_weights_of_the_method_without():
    for kind in (cf.Composite, cf.CMLoRA):
        made, plain = (plan(m, NAMES, 20) for m in (kind(cache="relay"), kind(cache_interval=1)))
        choices = [[step.early.weights for step in it.steps] for it in (made, plain)]
        assert choices[0] == choices[1]


def test_of_one_or_none():
    for names in ([], ["a"]):
        assert all(step.real is None for step in plan(cf.CMLoRA(cache="relay"), names, 9).steps)
        made = plan(cf.CMLoRA(cache="forecast"), names, 20)
        assert sum(step.real is None for step in made.steps) == 11


def test_what_follows_steps():
    assert follows_steps(cf.Merge(cache="forecast"), ["a"])
    assert follows_steps(cf.Composite(cache="relay"), ["a", "b"])
    assert not follows_steps(cf.Composite(cache="relay"), ["a"])
    assert not reuses(cf.Merge(cache="forecast", cache_interval=3))


WRONG = [
    (cf.Merge, {"cache": "feature"}, "Merge.cache: expected one of 'features', 'forecast'; got"),
    (cf.Merge, {"cache": "relay"}, "Merge.cache: expected one of 'features', 'forecast'; got"),
    (cf.Switch, {"cache": "relay"}, "Switch.cache: expected"),
    (cf.CMLoRA, {"cache": None}, "CMLoRA.cache: expected one of 'features', 'forecast', 'relay'"),
    (cf.CMLoRA, {"cache": "relay", "reference_compat": True}, "CMLoRA.cache: expected its default"),
    (cf.Composite, {"cache": "forecast", "reference_compat": True}, "Composite.cache: expected"),
    (cf.Merge, {"cache": "forecast", "cache_interval": 0}, "Merge.cache_interval: expected"),
    (
        cf.Merge,
        {"cache": "forecast", "uniform": False, "cache_interval": 3, "center": 2, "pow": 1.4},
        "Merge.uniform: expected True with cache='forecast'",
    ),
]


@pytest.mark.parametrize("kind, given, message", WRONG)
def test_wrong_fields(kind, given, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        kind(**given)


def test_not_with_clora():
    with pytest.raises(TypeError, match="cache"):
        cf.CLoRA(concepts=[cf.Concept("a", "cat")], cache="relay")
