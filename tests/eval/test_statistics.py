"""Intervals and comparisons against values worked out by hand."""

import numpy as np
import pytest
from cmlora_fast.eval.statistics import compare, grouped, interval


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    draws = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        low, high = interval(draws.normal(size=40))
        covered += low <= 0 <= high
    assert 51 <= covered <= 60  # 95 % of 60 is 57, five standard deviations 8


def test_interval_of_a_few_values():
    assert interval([1.0]) is None
    assert interval([1.0, 1.0, 1.0]) == [1.0, 1.0]
    assert interval([0.0, 1.0] * 20) == interval([0.0, 1.0] * 20)
    low, high = interval([0.0, 1.0] * 20)
    assert (low, high) == pytest.approx((0.35, 0.65), abs=0.026)  # 0.5 ± 1.96 · 0.5 / √40


def test_pairs_are_compared_on_what_both_have():
    a = {("x", 0): 0.8, ("x", 1): 0.5, ("y", 0): 0.1, ("z", 0): 1.0}
    b = {("x", 0): 0.7, ("x", 1): 0.5, ("y", 0): 0.9}
    groups = {pair: pair for pair in a}
    found = compare(a, b, groups)
    assert (found["win"], found["tie"], found["loss"]) == (1, 1, 1)
    assert found["difference"] == pytest.approx(-0.7 / 3)
    assert compare(a, b, groups, tie=0.1)["tie"] == 2  # 0.8 - 0.7 counts as 0.1


def test_groups_are_resampled_as_one():
    values = {("x", 0): 0.0, ("x", 1): 1.0, ("y", 0): 1.0}
    assert grouped(values, {pair: pair[0] for pair in values}) == [0.5, 1.0]
