"""Strengths over a run, against values worked out by hand."""

import math

import pytest
from cmlora_fast.schedule import fade_of, stretches

CURVES = [
    ("0@0,1@0.5", 4, [0.0, 0.5, 1.0, 1.0]),
    ("0@0.25,1@0.5,0.4@0.75", 8, [0.0, 0.0, 0.0, 0.5, 1.0, 0.7, 0.4, 0.4]),
    ("-1@0.5", 3, [-1.0] * 3),  # one point is a constant
    ("1@0,0@1", 4, [1.0, 0.75, 0.5, 0.25]),  # the last step is at 3/4
    ("0@2,1@4", 6, [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]),  # numbers of steps
    ("0@2,1@12", 4, [0.0, 0.0, 0.0, 0.1]),  # that the run never reaches
    (" 2 @ 0 , 1e0 @ 1 ", 2, [2.0, 1.5]),
    (lambda fraction: fraction**2, 4, [0.0, 0.0625, 0.25, 0.5625]),
]


@pytest.mark.parametrize(("value", "steps", "factors"), CURVES)
def test_factors(value, steps, factors):
    assert fade_of("a", value).factors("a", steps) == pytest.approx(factors, abs=1e-12)


WRONG = [
    *("1@2", "x@0", "0@x", "0.5", "", "0@0,,1@1", "1@-0.1", "1@1.5", "nan@0", "1@inf", "0@0,1@2"),
    *("1@0.5,0@0.2", "1@0.5,0@0.5", "0@2,1@3.5", 0.5, None, ["0@0"]),
]


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_wrong_schedules(value):
    with pytest.raises(ValueError, match=r"weight_schedule\['a'\]: expected .*; got") as error:
        fade_of("a", value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, "much", None])
def test_functions_give_finite_numbers(value):
    fade = fade_of("a", lambda fraction: 1.0 if fraction < 0.5 else value)
    with pytest.raises(ValueError, match=r"weight_schedule\['a'\]: .* at 0.5 of the run; got"):
        fade.factors("a", 4)


def test_stretches():
    a = (0, 0, 0, 0, 0.5, 1, 1, 1, 1)
    factors = {"a": a, "b": (2,) * 9}
    cut = stretches(factors, 9, folds=True)
    assert [(s.start, s.stop, s.fading) for s in cut] == [(0, 4, ()), (4, 5, ("a",)), (5, 9, ())]
    assert [s.constant for s in cut] == [{"a": 0, "b": 2}, {"b": 2}, {"b": 2}]
    (whole,) = stretches(factors, 9, folds=False)
    assert (whole.start, whole.stop, whole.fading) == (0, 9, ("a",))
    assert whole.constant == {"b": 2}


def test_short_constant_stretches_stay_in_the_ramp():
    factors = {"a": (0, 0, 0, 0.1, 0.2, 0.3, 0.3, 0.3), "b": (1, 1, 1, 1, 1, 1, 1, 0)}
    (whole,) = stretches(factors, 8, folds=True)
    assert whole.fading == ("a", "b") and whole.constant == {}
