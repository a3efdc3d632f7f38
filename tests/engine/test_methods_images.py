"""Decisions are per image; runs repeat bit for bit; caches live for one call."""

import functools
import math

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative
from ..support.loops import composed, denoise, one_image, random_inputs, run_pipeline
from ..support.released_loop import amplitude

RUN = 1e-4
C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def three():
    return adapters.add_many(
        helpers.pipeline("sd", "dummy"), [*SCALES], adapters.EVERYTHING, [*SCALES.values()]
    )


def activate(pipe):
    """The loops switch adapters on and off; this is how they stood."""
    pipe.unet.enable_adapters()
    pipe.set_adapters([*SCALES], [*SCALES.values()])
    return pipe


METHODS = [
    None,
    cf.Merge(cache_interval=2),
    cf.Switch(switch_step=2, cache_interval=3),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(),
    cf.CMLoRA(variant="async", cache_interval=2),
    cf.CMLoRA(variant="online", cache_interval=2, threshold=0.3),
    cf.CMLoRA(variant="online", cache_interval=1, latch=False, amplitude="log", threshold=0.6),
]


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_image_of_a_batch_is_the_image_alone(method):
    pipe = activate(three())
    inputs = random_inputs(pipe, images=3, steps=8)
    with cf.accelerate(pipe, method):
        batch = run_pipeline(pipe, inputs)
        for image in range(3):
            alone = run_pipeline(pipe, one_image(inputs, image))
            assert relative(batch[:, image : image + 1], alone) < RUN


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_run_repeats_bit_for_bit(method):
    pipe = activate(three())
    inputs, other = (random_inputs(pipe, steps=8, seed=seed) for seed in (0, 1))
    with cf.accelerate(pipe, method):
        first = run_pipeline(pipe, inputs)
        run_pipeline(pipe, other)  # another prompt and noise: nothing of it may be left
        assert torch.equal(run_pipeline(pipe, inputs), first)
    with cf.accelerate(pipe, method):
        assert torch.equal(run_pipeline(pipe, inputs), first)


class Online:
    """The default online algorithm for one image (cmlora spec §4.3); indexed once per step."""

    def __init__(self, order, low, threshold, interval, latch, size):
        self.order, self.high = list(order), [name for name in order if name not in low]
        self.threshold, self.interval, self.latch = threshold, interval, latch
        radius = math.sqrt((size[0] // 2) ** 2 + (size[1] // 2) ** 2)
        self.first_bin = max(1, int(0.2 * radius))
        self.early, self.turn, self.coeff, self.leader = True, 0, len(order) - 0.5, None
        self.amplitudes, self.leaders, self.stages = [], [], []

    def __getitem__(self, i):
        full = set()
        if i % self.interval == 0:
            if i:
                above = self.amplitudes[-1] >= self.threshold
                self.early = above and (self.early or not self.latch)
                self.coeff = max(1.0, self.coeff - (0.5**self.turn if self.turn else 0))
            pool = self.high if self.early else self.order[1:]
            self.leader = pool[self.turn % len(pool)]
            full = {self.leader} if i and self.interval > 1 else set(self.order)
            self.turn += 1
        self.leaders.append(self.leader)
        self.stages.append(self.early)
        total = self.coeff + len(self.order) - 1
        shares = {n: (self.coeff if n == self.leader else 1) / total for n in self.order}
        return {name: (share, name in full) for name, share in shares.items()}

    def measure(self, i, z):
        self.amplitudes.append(amplitude(z, self.first_bin))


ONLINE = [
    # interval, latch, size, quantile of the amplitudes seen that becomes the threshold
    (1, True, (16, 16), 0.5),  # changes at any step
    (2, True, (16, 16), 0.5),  # felt at schedule steps only
    (2, False, (16, 16), 0.5),  # back and forth
    (3, True, (16, 24), 0.7),  # not square: index radii
    (2, True, (16, 16), 0.0),  # early to the end
]


@pytest.mark.parametrize(("interval", "latch", "size", "quantile"), ONLINE)
def test_cmlora_online(interval, latch, size, quantile):
    pipe, T = three(), 8
    inputs = random_inputs(pipe, images=2, steps=T, size=size)

    def loop(threshold):
        runs = [Online([*SCALES], [B], threshold, interval, latch, size) for _ in range(2)]
        return runs, [
            denoise(pipe, composed(pipe, run, SCALES), one_image(inputs, image), run.measure)
            for image, run in enumerate(runs)
        ]

    early, _ = loop(-1.0)  # its amplitudes tell where a threshold has an effect
    measured = torch.tensor([m for run in early for m in run.amplitudes])
    threshold = measured.quantile(quantile).item() if quantile else -1.0
    runs, images = loop(threshold)
    if quantile:
        assert not all(all(run.stages) for run in runs)
    margin = min(abs(m - threshold) for run in runs for m in run.amplitudes)
    assert margin > 1e-5  # else rounding decides
    method = cf.CMLoRA(variant="online", cache_interval=interval, latch=latch, threshold=threshold)
    activate(pipe)
    with cf.accelerate(pipe, method):
        got = run_pipeline(pipe, inputs)
    assert relative(got, torch.cat(images, 1)) < RUN
    steps = cf.summary(pipe).steps
    assert [step.dominant for step in steps] == runs[0].leaders
    assert [step.early for step in steps] == runs[0].stages
    got = [step.amplitude for step in steps]
    assert got == pytest.approx(runs[0].amplitudes, rel=1e-3)
    for image, run in enumerate(runs):
        assert [step.per_image[image]["dominant"] for step in steps] == run.leaders


@pytest.mark.parametrize("variant", ["offline", "online", "async"])
def test_interval_one_equals_no_cache(variant):
    """Every row full, at every step; the cut is then of no consequence."""
    pipe = activate(three())
    inputs = random_inputs(pipe, steps=4)
    images = []
    for layer, block in [(0, 1), (0, 0)]:
        method = cf.CMLoRA(
            variant=variant, cache_interval=1, cache_layer_id=layer, cache_block_id=block
        )
        with cf.accelerate(pipe, method):
            images.append(run_pipeline(pipe, inputs))
        assert all(step.shallow_rows == 0 for step in cf.summary(pipe).steps)
    assert relative(images[0], images[1]) < 1e-5


@pytest.mark.parametrize("method", ["composite", cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_caches_follow_a_change_of_size_and_count(method):
    """A call of another size, batch and adapter count in between leaves nothing behind."""
    pipe = activate(three())
    inputs = random_inputs(pipe, steps=8)
    with cf.accelerate(pipe, method):
        first = run_pipeline(pipe, inputs)
        run_pipeline(pipe, random_inputs(pipe, images=2, steps=8, size=(8, 24)))
        pipe.set_adapters([B, C], [0.3, 0.4])
        run_pipeline(pipe, random_inputs(pipe, steps=3, guidance_scale=1.0))
        activate(pipe)
        assert torch.equal(run_pipeline(pipe, inputs), first)


@pytest.mark.parametrize("max_rows", [1, 3, 7])
@pytest.mark.parametrize("method", METHODS[1:5], ids=helpers.label)
def test_max_rows_of_methods(method, max_rows):
    pipe = activate(three())
    inputs = random_inputs(pipe, images=2, steps=8)
    with cf.accelerate(pipe, method):
        want = run_pipeline(pipe, inputs)
    with cf.accelerate(pipe, method, max_rows=max_rows):
        assert relative(run_pipeline(pipe, inputs), want) < RUN


@pytest.mark.parametrize("method", METHODS[2:6], ids=helpers.label)
def test_fold_and_delta_agree(method):
    pipe = activate(three())
    inputs = random_inputs(pipe, steps=8)
    images = []
    for weights in ("fold", "delta"):
        with cf.accelerate(pipe, method, weights=weights):
            images.append(run_pipeline(pipe, inputs))
    assert relative(*images) < RUN


def test_order_of_set_adapters_is_the_order_of_rotation():
    pipe = activate(three())
    pipe.set_adapters([S, B, C], [1.0, 1.0, 1.0])
    with cf.accelerate(pipe, cf.Switch(switch_step=1)):
        call(pipe, num_inference_steps=4)
    assert [step.dominant for step in cf.summary(pipe).steps] == [S, B, C, S]


def test_scale_reaches_every_method():
    """Twice the scale of half the weights is the same adapter."""
    pipe = activate(three())
    inputs = random_inputs(pipe, steps=4)
    for method in ("composite", "switch", cf.CMLoRA(cache_interval=1)):
        with cf.accelerate(pipe, method):
            activate(pipe)
            want = run_pipeline(pipe, inputs)
            pipe.set_adapters([*SCALES], [scale / 2 for scale in SCALES.values()])
            got = run_pipeline(pipe, inputs, cross_attention_kwargs={"scale": 2.0})
        assert relative(got, want) < RUN
