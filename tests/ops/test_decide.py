"""Decisions on the device, against the host's walk through a plan."""

import pytest
import torch
from cmlora_fast import ops
from cmlora_fast.schedule.stepplan import Choice, Measure, Plan, StepPlan, Walk
from torch.library import opcheck

from ..support.host_cuda import guarded

NAN = float("nan")
HALF = 0.4 + 2**-40  # between two numbers of float32


@pytest.fixture(params=["op", "CUDA on the CPU"])
def decide_(request):
    return (ops if request.param == "op" else request.getfixturevalue("cuda")).decide_


def tables(J, F, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shares = torch.rand(2, J, generator=draw)
    places = torch.stack([torch.randperm(J, generator=draw)[:F].sort()[0] for _ in range(2)])
    return shares, places.to(torch.int32)


def outputs(J, F, batch):
    return (
        guarded(torch.full((J, batch), NAN)),
        guarded(torch.full((3, F * batch), -7, dtype=torch.int32)),
    )


def walked(readings, J, shares, places, measure):
    """Stages by ``Walk``; a reading of each image per step."""
    late, early = (
        Choice(str(s), tuple(j in places[s] for j in range(J)), tuple(shares[s].tolist()))
        for s in (0, 1)
    )
    steps = [StepPlan(tuple(range(J)), early, late, decides=True)] * (1 + len(readings))
    plan = Plan(tuple((str(j),) for j in range(J)), tuple(steps), True, measure)
    walks = [Walk(plan) for _ in readings[0]]
    for walk in walks:
        walk.choose(0)
    return [
        [walk.choose(i + 1, reading) for walk, reading in zip(walks, row, strict=True)]
        for i, row in enumerate(readings)
    ]


@pytest.mark.parametrize("latch", [True, False])
@pytest.mark.parametrize("nan_early", [True, False])
@pytest.mark.parametrize(
    ("J", "F", "images", "parts"),
    [
        (3, 1, 1, 2),  # CMLoRA, guided
        (5, 1, 3, 2),  # images that decide for themselves
        (4, 3, 2, 1),  # several refreshed at once, no guidance
        (2, 0, 1, 3),  # a step that refreshes nothing
        (90, 1, 5, 1),  # more numbers than threads
    ],
)
def test_decisions_are_the_hosts(decide_, J, F, images, parts, latch, nan_early):
    batch, (shares, places) = images * parts, tables(J, F)
    draw = torch.Generator().manual_seed(1)
    readings = 0.3 + 0.2 * torch.rand(6, images, generator=draw)
    readings[2, 0], readings[4] = NAN, torch.tensor(HALF)  # rounds to below the threshold
    measure = Measure(HALF, 0.2, False, latch, 100 if nan_early else 0)
    early = torch.ones(images, dtype=torch.int32)
    weights, deep = outputs(J, F, batch)
    for reading, chosen in zip(
        readings, walked(readings.tolist(), J, shares, places, measure), strict=True
    ):
        decide_(early, weights, deep, reading, shares, places, HALF, latch, nan_early)
        assert early.tolist() == [stage for _, stage in chosen]
        for n in range(batch):
            assert weights[:, n].tolist() == list(chosen[n % images][0].weights)
        rows = [
            (j * batch + p * images + b, j)
            for b, (choice, _) in enumerate(chosen)
            for j in range(J)
            if choice.refresh[j]
            for p in range(parts)
        ]
        assert list(zip(*deep[:2].tolist(), strict=True)) == rows
        runs = [j for _, j in rows[::parts]]
        assert deep[2].tolist() == runs + [0] * (len(rows) - len(runs))


def test_without_a_reading_stages_stay(decide_):
    shares, places = tables(3, 1)
    early, (weights, deep) = torch.tensor([1, 0], dtype=torch.int32), outputs(3, 1, 4)
    decide_(early, weights, deep, None, shares, places, 0.5, True, False)
    assert early.tolist() == [1, 0]
    assert torch.equal(weights, shares[[1, 0, 1, 0]].T)


def test_registered():
    shares, places = tables(3, 1)
    early, (weights, deep) = torch.ones(2, dtype=torch.int32), outputs(3, 1, 4)
    opcheck(ops.decide_.op, (early, weights, deep, torch.rand(2), shares, places, 0.5))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.ones(2), "early"),
        (0, torch.ones(3, dtype=torch.int32), "a multiple of B"),
        (2, torch.ones(3, 5, dtype=torch.int32), r"deep \[3, F \* batch\]"),
        (3, torch.ones(3), r"reading \[B\]"),
        (4, torch.ones(2, 2), r"shares \[2, J\]"),
        (1, torch.tensor(1.0), r"weights \[J, batch\]"),
        (1, torch.ones(3, 4).requires_grad_(), "records no gradient"),
    ],
)
def test_wrong_arguments(place, value, message):
    shares, places = tables(3, 1)
    given = [torch.ones(2, dtype=torch.int32), *outputs(3, 1, 4), torch.rand(2), shares, places]
    given[place] = value
    with pytest.raises((TypeError, ValueError, RuntimeError), match=f"decide_: .*{message}"):
        ops.decide_(*given, 0.5)
