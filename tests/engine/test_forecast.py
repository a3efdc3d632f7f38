"""Forecast steps against a plain pipeline whose UNet somebody has wrapped to do the same."""

import copy
import math

import cmlora_fast as cf
import diffusers
import pytest
import torch
from cmlora_fast.engine.history import RULES, History
from cmlora_fast.engine.levels import Level, noise_levels
from cmlora_fast.schedule import plan, real_steps

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
STEPS = 14
NAMES = ["character_1", "style_1", "background_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, adapters.EVERYTHING, weights=[0.9, 0.7, 0.5])


class Line:
    """x₀ of the past, in float64, followed as far as the rule says."""

    def __init__(self, kind):
        self.points, self.rule = [], RULES[kind]

    def take(self, time, clean):
        self.points = [*self.points[-1:], (time, clean)]

    def at(self, time):
        (t0, x0), (t1, x1) = self.points
        far = 0.0 if abs(t1 - t0) < 1e-9 else (time - t1) / (t1 - t0)
        return x1 + min(self.rule.farthest, max(0.0, far)) * (x1 - x0)


class Wrapped:
    """Stands for a pipeline's UNet: one call per adapter, by PEFT, of those that shall run."""

    def __init__(self, pipe, method, steps):
        self.pipe, self.kind, self.own = pipe, method.cache, pipe.unet.forward
        names = [*zip(NAMES, [0.9, 0.7, 0.5], strict=True)]
        self.made = plan(method, NAMES, steps)
        self.subsets = [[(n, w) for n, w in names if n in group] for group in self.made.subsets]
        self.calls, self.ran, self.lines = 0, 0, {}

    def __call__(self, sample, timestep, **given):
        scheduler = self.pipe.scheduler
        order, count = scheduler.order, len(scheduler.timesteps)
        i, evaluation = divmod(self.calls, order)
        step = self.made.steps[min(i, len(self.made.steps) - 1)]
        sigma = sigma_of(scheduler, self.calls)
        self.calls += 1
        assert self.calls <= count
        alpha, noise = 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        x, predicted = sample.double(), []
        for j, group in enumerate(step.groups):
            line = self.lines.setdefault((evaluation, group), Line(self.kind))
            time = {"relay": sigma, "forecast": -math.log(max(sigma, 1e-8))}[self.kind]
            runs = step.real is None or step.real[j]
            if runs:
                self.ran += 1
                names, weights = zip(*self.subsets[group], strict=True)
                self.pipe.unet.set_adapters([*names], [*weights])
                given["return_dict"] = False
                predicted.append(self.own(sample, timestep, **given)[0].double())
                line.take(time, (x - noise * predicted[-1]) / alpha)
            else:
                predicted.append((x - alpha * line.at(time)) / noise)
        shares = zip(step.early.weights, predicted, strict=True)
        return (sum(share * p for share, p in shares).to(sample.dtype),)


def sigma_of(scheduler, i):
    """Noise over signal, from each scheduler's own state."""
    if hasattr(scheduler, "sigmas_interpol") and i % 2:
        return float(scheduler.sigmas_interpol[i])
    if hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[i])
    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[i])])
    return math.sqrt((1 - alpha) / alpha)


def plainly(pipe, method, **given):
    """The image of a copy that was never enabled, and how many predictions it took."""
    plain = copy.deepcopy(pipe)
    steps = given["num_inference_steps"]
    if type(plain.scheduler).__name__ == "PNDMScheduler":
        steps += 1  # one of its time steps comes twice
    plain.unet.forward = wrapped = Wrapped(plain, method, steps)
    return call(plain, **given), wrapped.ran


MADE = {
    **helpers.SCHEDULERS,
    "kdpm2": lambda: diffusers.KDPM2DiscreteScheduler.from_config(helpers._BETAS),
    "karras": lambda: diffusers.EulerDiscreteScheduler(**helpers._BETAS, use_karras_sigmas=True),
    "lms": lambda: diffusers.LMSDiscreteScheduler.from_config(helpers._BETAS),
    "sde": lambda: diffusers.DPMSolverMultistepScheduler(
        **helpers._BETAS, algorithm_type="sde-dpmsolver++"
    ),
}


@pytest.mark.parametrize("scheduler", MADE)
@pytest.mark.parametrize(
    "method", [cf.Merge(cache="forecast"), cf.Composite(cache="relay")], ids=helpers.label
)
def test_schedulers(pipe, method, scheduler):
    pipe.scheduler = MADE[scheduler]()
    want, _ = plainly(pipe, method, num_inference_steps=STEPS)
    cf.enable(pipe, method)
    assert relative(call(pipe, num_inference_steps=STEPS), want) < RUN


METHODS = [
    *[kind(cache="forecast") for kind in (cf.Merge, cf.Switch, cf.Composite)],
    *[kind(cache="relay") for kind in (cf.Composite, cf.CMLoRA)],
    cf.CMLoRA(cache="relay", variant="async", cache_interval=2),
    cf.Merge(cache="forecast", cache_interval=3),
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_methods(pipe, method, weights):
    want, ran = plainly(pipe, method, num_inference_steps=20)
    cf.enable(pipe, method, weights=weights)
    assert relative(call(pipe, num_inference_steps=20), want) < RUN
    steps = cf.summary(pipe).steps
    assert sum(step.full_rows for step in steps) == 2 * ran
    assert not any(step.shallow_rows for step in steps)


def test_a_step_of_cmlora_forecasts_the_blend(pipe):
    """Its lines are of what the rows come to: no plain loop of rows, but a wrapped answer."""
    method = cf.CMLoRA(cache="forecast")
    cf.enable(pipe, cf.CMLoRA(cache_interval=1))
    want = call(pipe, num_inference_steps=20)
    cf.enable(pipe, method)
    got = call(pipe, num_inference_steps=20)
    real = real_steps(method, 20)
    steps = cf.summary(pipe).steps
    assert [step.index for step in steps if step.full_rows == 6] == sorted(real)
    assert [step.index for step in steps if step.full_rows == 0] == sorted({*range(20)} - real)
    assert 1e-5 < relative(got, want) < 0.1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_levels_go_there_and_back(kind):
    level, (clean, noise) = Level(kind, 0.8, 0.6), torch.randn(2, 1, 4, 8, 8).double()
    sample = level.signal * clean + level.noise * noise
    answers = {"epsilon": noise, "sample": clean}
    answers["v_prediction"] = level.signal * noise - level.noise * clean
    assert relative(level.clean(sample, answers[kind]), clean) < 1e-6
    assert relative(level.prediction(sample, clean), answers[kind]) < 1e-6


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm"])
def test_prediction_types(pipe, scheduler, kind):
    """x₀ of the history is what the scheduler makes of the prediction."""
    config = dict(MADE[scheduler]().config) | {"prediction_type": kind}
    pipe.scheduler = type(MADE[scheduler]()).from_config(config)
    pipe.scheduler.set_timesteps(9)
    draw = torch.Generator().manual_seed(0)
    x, prediction = (torch.randn(1, 4, 8, 8, generator=draw) for _ in range(2))
    t, level = pipe.scheduler.timesteps[4], noise_levels(pipe.scheduler, 9)[4]
    scaled = pipe.scheduler.scale_model_input(x, t)
    if scheduler == "dpm":
        pipe.scheduler._init_step_index(t)
        want = pipe.scheduler.convert_model_output(prediction, sample=x)
    else:
        want = pipe.scheduler.step(prediction, t, x).pred_original_sample
    assert relative(level.clean(scaled, prediction), want) < 1e-5
    cf.enable(pipe, cf.Merge(cache="forecast"))
    assert call(pipe, num_inference_steps=STEPS).isfinite().all()


REFUSED = {
    "EDMEulerScheduler": lambda: diffusers.EDMEulerScheduler(),
    "DPMSolverMultistepScheduler with 'flow_prediction'": lambda: (
        diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        )
    ),
    "IPNDMScheduler": lambda: diffusers.IPNDMScheduler(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_predictions_are_refused_by_name(pipe, name):
    want, scheduler = call(pipe, num_inference_steps=4), pipe.scheduler
    pipe.scheduler = REFUSED[name]()
    cf.enable(pipe, cf.Merge(cache="forecast"))
    with pytest.raises(ValueError, match=f"scheduler: expected .*{name}"):
        call(pipe, num_inference_steps=STEPS)
    cf.disable(pipe)
    pipe.scheduler = scheduler
    assert torch.equal(call(pipe, num_inference_steps=4), want)


# --- what is exact


def test_a_line_is_followed_to_rounding():
    """Within the rule's limit; beyond, no further."""
    draw = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, 3, 4, 8, 8, generator=draw)
    history = History(1, start)
    cells = [(0, n) for n in range(3)]
    for time in (0.3, 0.9):
        history.take(cells, start + time * slope, time)
    for time, farthest, reached in [(1.2, 1.0, 1.2), (1.5, 1.0, 1.5), (9.0, 0.5, 1.2)]:
        reach = torch.tensor([[history.reach(cell, time, farthest) for cell in cells]])
        got = history.blend(torch.ones(1, 3), reach)
        assert relative(got, start + reached * slope) < 1e-6
    assert history.reach((0, 0), 0.5, 1.0) == 0.0  # not backwards


def test_points_of_samples_and_lines_do_not_mix():
    draw = torch.Generator().manual_seed(0)
    history, points = History(2, torch.zeros(3, 1, 4, 4)), {}
    for time in range(4):
        for cells in ([(0, 0), (0, 1), (0, 2)], [(1, 2), (0, 1)], [(1, 0), (1, 1)]):
            clean = torch.randn(len(cells), 1, 4, 4, generator=draw)
            history.take(cells, clean, time)
            for cell, value in zip(cells, clean, strict=True):
                points.setdefault(cell, []).append(value)
    share, reach = torch.rand(2, 3, generator=draw), torch.rand(2, 3, generator=draw)
    for n, got in enumerate(history.blend(share, reach)):
        lines = [
            share[j, n] * (points[j, n][-1] + reach[j, n] * (points[j, n][-1] - points[j, n][-2]))
            for j in range(2)
        ]
        assert relative(got, sum(lines)) < 1e-6


def linear(pipe, time):
    """A UNet whose x₀ is a line in ``time`` of the noise."""
    draw = torch.Generator().manual_seed(1)
    start, slope = torch.randn(2, 1, 4, 16, 16, generator=draw)

    def forward(sample, timestep, *args, **kwargs):
        alpha = pipe.scheduler.alphas_cumprod[int(timestep)].sqrt()
        noise = (1 - alpha**2).sqrt()
        clean = start + time(float(noise / alpha)) * slope
        return ((sample - alpha * clean) / noise,)

    return forward


@pytest.mark.parametrize("method", [cf.Merge(cache="forecast"), cf.Composite(cache="relay")])
def test_a_constant_image_is_forecast_to_rounding(pipe, method):
    pipe.unet.forward = linear(pipe, lambda sigma: 0.0)
    want = call(pipe, num_inference_steps=30)
    cf.enable(pipe, method)
    assert relative(call(pipe, num_inference_steps=30), want) < 1e-5
    assert sum(step.full_rows for step in cf.summary(pipe).steps) < 100


def test_a_line_is_forecast_to_rounding_in_a_run(pipe):
    """In turns of two, whose lines are never followed further than the last step was long."""
    pipe.set_adapters(NAMES[:2])
    pipe.unet.forward = linear(pipe, lambda sigma: sigma)
    want = call(pipe, num_inference_steps=30)
    cf.enable(pipe, cf.Composite(cache="relay"))
    assert relative(call(pipe, num_inference_steps=30), want) < 1e-5
    assert [step.full_rows for step in cf.summary(pipe).steps] == [4, 4, *[2] * 28]
