"""``adapter_names``: every image of a call composed of adapters of its own, in one batch."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers, recording
from ..support.helpers import relative
from ..support.loops import one_image, random_inputs, run_pipeline
from ..support.per_image import BASE, RUN, alone, compare, middle_rows, together
from ..support.three import SCALES, B, C, S

MIXED = [[C], [S, C], BASE]  # one, two in another order than the pipeline's, none
SETS = [[B, C], [S], [C, S, B]]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = [
    None,
    cf.Merge(cache_interval=2),
    cf.Switch(switch_step=2),
    cf.Switch(switch_step=2, cache_interval=3),
    cf.Switch(switch_step=1, partition=True),
    cf.Composite(),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(),
    cf.CMLoRA(cache_interval=1),
    cf.CMLoRA(cache_interval=2, max_age=3),
    cf.CMLoRA(cache_interval=2, dominant_full="every_step"),
    cf.CMLoRA(variant="online", cache_interval=2, threshold=0.3),
    cf.CMLoRA(variant="online", cache_interval=1, latch=False, threshold=0.3),
    cf.CMLoRA(variant="async", cache_interval=2),
]
CACHED = [METHODS[i] for i in (1, 3, 6, 9, 11)]


@pytest.fixture
def pipe():
    return adapters.fresh([*SCALES], adapters.EVERYTHING, weights=[*SCALES.values()])


def check_records(summary, singles, entries):
    """Each step's rows are those of the images alone, and so is what it says of each image."""
    for i, step in enumerate(summary.steps):
        own = [single.steps[i] for single in singles]
        assert step.full_rows == sum(record.full_rows for record in own)
        assert step.shallow_rows == sum(record.shallow_rows for record in own)
        assert len(step.per_image) == len(entries)
        for said, record, entry in zip(step.per_image, own, entries, strict=True):
            assert said["dominant"] == record.dominant and said["early"] == record.early
            assert sorted(said["refreshed"]) == sorted(record.refreshed)
            assert said["weights"] == pytest.approx(record.weights)
            assert set(said["weights"]) <= {BASE, *entry}


@pytest.mark.parametrize("entries", [MIXED, SETS], ids=["mixed", "sets"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_each_image_is_the_one_painted_alone(pipe, method, entries):
    inputs = random_inputs(pipe, images=3, steps=8)
    check_records(*compare(pipe, method, entries, SCALES, inputs), entries)


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_a_step_is_one_batch(pipe, method):
    """Guidance parts times the rows of every image: as many as it has adapters, or one."""
    inputs = random_inputs(pipe, images=3, steps=6)
    with middle_rows(pipe) as seen:
        _, summary = together(pipe, method, SETS, lambda: run_pipeline(pipe, inputs))
    whole = [step.full_rows for step in summary.steps if step.full_rows]
    assert seen == whole
    each = isinstance(method, cf.Composite | cf.CMLoRA)
    rows = 2 * sum(len(entry) if each else 1 for entry in SETS)
    assert [step.full_rows + step.shallow_rows for step in summary.steps] == [rows] * 6


@pytest.mark.parametrize("max_rows", [1, 2, 3])
@pytest.mark.parametrize("method", [None, *CACHED], ids=helpers.label)
def test_chunks_of_a_step(pipe, method, max_rows):
    inputs = random_inputs(pipe, images=3, steps=6)
    compare(pipe, method, MIXED, SCALES, inputs, max_rows=max_rows)
    with middle_rows(pipe) as seen:
        options = dict(max_rows=max_rows)
        together(pipe, method, SETS, lambda: run_pipeline(pipe, inputs), **options)
    assert 0 < max(seen) <= max_rows


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", [None, *CACHED], ids=helpers.label)
def test_weights(pipe, method, weights):
    compare(pipe, method, SETS, SCALES, random_inputs(pipe, images=3, steps=6), weights=weights)


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", [None, *CACHED], ids=helpers.label)
def test_on_what_is_taken_for_a_gpu(pipe, method, weights, monkeypatch):
    """Recorded steps, with tables on the device: the host's images, also when replayed."""
    inputs, other = (random_inputs(pipe, images=3, steps=6, seed=seed) for seed in (0, 1))
    want, _ = together(pipe, method, MIXED, lambda: run_pipeline(pipe, inputs), weights=weights)
    recording.pretend(monkeypatch)
    options = dict(weights=weights, backend="torch", adapter_names=MIXED)
    with cf.accelerate(pipe, method, **options):
        first = run_pipeline(pipe, inputs)
        run_pipeline(pipe, other)
        again = run_pipeline(pipe, inputs)
    assert relative(first, want) < RUN and torch.equal(first, again)


@pytest.mark.parametrize("guidance", [1.0, 0.0])
@pytest.mark.parametrize("method", [None, *CACHED], ids=helpers.label)
def test_without_guidance(pipe, method, guidance):
    inputs = random_inputs(pipe, images=3, steps=6, guidance_scale=guidance)
    summary, singles = compare(pipe, method, MIXED, SCALES, inputs)
    check_records(summary, singles, MIXED)


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("kind", [cf.Composite, cf.CMLoRA])
def test_masks(pipe, kind, interval):
    """An image knows the pictures of its own adapters only."""
    left = torch.zeros(16, 16)
    left[:, :8] = 1.0
    masks = {C: left.numpy(), B: 1.0 - left.numpy()}
    method = kind(masks=masks, cache_interval=interval)
    inputs = random_inputs(pipe, images=4, steps=4)
    entries = [[C, B], [C], [S, B, C], BASE]
    check_records(*compare(pipe, method, entries, SCALES, inputs), entries)


def test_a_size_that_is_not_square(pipe):
    inputs = random_inputs(pipe, images=3, steps=4, size=(16, 24))
    compare(pipe, cf.CMLoRA(cache_interval=2), SETS, SCALES, inputs)


@pytest.mark.parametrize("scheduler", ["pndm", "heun"])
def test_schedulers_with_more_calls_than_steps(pipe, scheduler):
    pipe.scheduler = helpers.SCHEDULERS[scheduler]()
    inputs = random_inputs(pipe, images=3, steps=5)
    compare(pipe, cf.Switch(switch_step=1), MIXED, SCALES, inputs)


@pytest.mark.parametrize("method", [None, *CACHED], ids=helpers.label)
def test_an_adapter_of_weight_zero_takes_no_part(pipe, method):
    """Nor does it count: an image that has no other is the base model's."""
    scales = {**SCALES, S: 0.0}
    pipe.set_adapters([*scales], [*scales.values()])
    inputs = random_inputs(pipe, images=3, steps=6)
    entries = [[C, S, B], [S], [S, B]]
    summary, _ = compare(pipe, method, entries, scales, inputs)
    assert all(S not in image["weights"] for step in summary.steps for image in step.per_image)


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_the_same_adapters_for_all_are_none_of_ones_own(pipe, method):
    inputs = random_inputs(pipe, images=2, steps=6)
    with cf.accelerate(pipe, method):
        want, plain = run_pipeline(pipe, inputs), cf.summary(pipe)
    got, summary = together(pipe, method, [[*SCALES]] * 2, lambda: run_pipeline(pipe, inputs))
    assert relative(got, want) < RUN
    assert [s.full_rows for s in summary.steps] == [s.full_rows for s in plain.steps]


@pytest.mark.parametrize("method", [None, cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_base_for_all_is_the_plain_pipeline(pipe, method):
    inputs = random_inputs(pipe, images=2, steps=6)
    got, _ = together(pipe, method, [BASE, BASE], lambda: run_pipeline(pipe, inputs))
    want, _ = alone(pipe, method, BASE, SCALES, lambda: run_pipeline(pipe, inputs))
    assert relative(got, want) < RUN


def test_a_name_stands_for_a_list_of_one(pipe):
    inputs = random_inputs(pipe, images=3, steps=4)
    names, lists = ([C, S, [B, C]], [[C], [S], [B, C]])
    got, _ = together(pipe, "composite", names, lambda: run_pipeline(pipe, inputs))
    want, _ = together(pipe, "composite", lists, lambda: run_pipeline(pipe, inputs))
    assert torch.equal(got, want)


def test_runs_repeat_bit_for_bit_and_leave_nothing_behind(pipe):
    method, inputs = cf.CMLoRA(cache_interval=2), random_inputs(pipe, images=3, steps=6)
    with cf.accelerate(pipe, method, adapter_names=SETS):
        first = run_pipeline(pipe, inputs)
        cf.enable(pipe, method, adapter_names=MIXED)
        run_pipeline(pipe, inputs)
        cf.enable(pipe, method, adapter_names=SETS)
        assert torch.equal(run_pipeline(pipe, inputs), first)
    assert pipe.get_active_adapters() == [*SCALES]


def test_recorded_features_are_those_of_each_image(pipe):
    """Samples are guidance-major: every second one is the second image's."""
    method, inputs = cf.Composite(cache_interval=2), random_inputs(pipe, images=2, steps=4)

    def run(given):
        return lambda: run_pipeline(pipe, given)

    _, summary = together(pipe, method, [[C, S], [C]], run(inputs), record=True)
    _, single = alone(pipe, method, [C], SCALES, run(one_image(inputs, 1)), record=True)
    assert relative(summary.features[C][:, 1::2], single.features[C]) < RUN
    assert summary.profiles.shape[0] == 4 and summary.profiles.isfinite().all()
