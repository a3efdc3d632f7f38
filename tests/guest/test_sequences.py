"""Random sequences of what users, callbacks and other libraries do to a pipeline.

Everything is done to two: one that is enabled and disabled in between, and a twin that never is.
Whatever was done, images agree, and once disabled the pipeline is as the twin, bit for bit.
"""

import copy
import random

import cmlora_fast as cf
import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from torch import nn

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
NAMES = ["character_1", "style_1", "background_1"]
BLOCKS = ["down_blocks.1", "mid_block", "up_blocks.0"]
LAYERS = ["mid_block.resnets.0", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
SIZE = {"height": 64, "width": 64}
METHODS = ["merge", "switch", "composite", "cmlora", cf.Merge(cache_interval=2)]
ENABLED = [{}, {"weights": "delta"}, {"weights": "fold"}, {"max_rows": 1}, {"record": True}]


def changed(out):
    return tuple(map(changed, out)) if isinstance(out, tuple) else out + 0.1 * out.flip(1)


class Both:
    """The pipeline and its twin; every step is done to both, with the same draws."""

    def __init__(self, draw: random.Random):
        self.draw = draw
        self.pipe = adapters.fresh(NAMES, adapters.EVERYTHING, text=True)
        self.twin = copy.deepcopy(self.pipe)
        self.undo: list[tuple] = []
        self.done: list[str] = []

    def both(self, act):
        return act(self.pipe), act(self.twin)

    # --- what a user does

    def paint(self):
        steps, seed = self.draw.choice([1, 2, 3]), self.draw.randrange(100)
        callback = self.draw.choice([None, None, *CALLBACKS])
        images = []
        for pipe in (self.pipe, self.twin):
            given = {} if callback is None else {"callback_on_step_end": callback(seed)}
            images.append(call(pipe, num_inference_steps=steps, seed=seed, **SIZE, **given))
        assert relative(*images) < RUN
        if cf.summary(self.pipe).steps and self.enabled:
            assert len(cf.summary(self.pipe).steps) >= steps

    enabled = False

    def enable(self):
        cf.enable(self.pipe, **self.draw.choice(ENABLED))
        self.enabled = True

    def another_method(self):
        """Its image is its own; what it leaves behind is what counts."""
        before = self.enabled
        with cf.accelerate(self.pipe, self.draw.choice(METHODS)):
            call(self.pipe, num_inference_steps=2, **SIZE)
        self.enabled = before
        call(self.twin, num_inference_steps=2, **SIZE)  # its scheduler has the same steps

    def disable(self):
        cf.disable(self.pipe)
        self.enabled = False

    def set_adapters(self):
        names = self.draw.sample(NAMES, self.draw.randint(1, 3))
        weights = [self.draw.choice([0.0, 0.5, 1.0, -0.7]) for _ in names]
        self.both(lambda pipe: pipe.set_adapters(names, weights))

    def switch_off(self):
        self.both(lambda pipe: pipe.disable_lora())

    def switch_on(self):
        self.both(lambda pipe: pipe.enable_lora())

    def exchange_the_scheduler(self):
        name = self.draw.choice(["ddim", "euler", "dpm", "heun", "unipc"])
        self.both(lambda pipe: setattr(pipe, "scheduler", helpers.SCHEDULERS[name]()))

    def fail(self):
        def stop(pipe, i, t, tensors):
            raise OSError("disk full")

        for pipe in (self.pipe, self.twin):
            with pytest.raises(OSError, match="disk full"):
                call(pipe, num_inference_steps=3, callback_on_step_end=stop, **SIZE)

    def encode(self):
        self.both(lambda pipe: pipe.encode_prompt("words", "cpu", 1, True, "bad"))

    def copy(self):
        """The copy goes on in the pipeline's place, un-enabled."""
        if not self.undo:
            self.pipe, self.enabled = copy.deepcopy(self.pipe), False

    def call_the_unet(self):
        given = torch.ones(1, 4, 8, 8), 1, torch.ones(1, 77, helpers.WIDTH)
        with torch.no_grad():
            assert relative(*(out.sample for out in self.both(lambda p: p.unet(*given)))) < RUN

    # --- what other libraries do

    def hook(self):
        name = self.draw.choice(BLOCKS + LAYERS)
        handles = self.both(
            lambda pipe: pipe.unet.get_submodule(name).register_forward_hook(
                lambda module, args, out: changed(out)
            )
        )
        self.undo.append(tuple(handle.remove for handle in handles))

    def wrap(self):
        """A forward, put back as patchers do: as it was found."""
        name, undo = self.draw.choice(["", *BLOCKS, *LAYERS]), []
        for pipe in (self.pipe, self.twin):
            module = pipe.unet.get_submodule(name)
            own, shadowed = module.forward, vars(module).get("forward")

            def forward(*args, own=own, **kwargs):
                out = own(*args, **kwargs)
                return changed(out[0] if hasattr(out, "sample") else out)

            def whole(*args, own=own, **kwargs):  # the pipeline asks for a tuple
                return changed(own(*args, **{**kwargs, "return_dict": False}))

            def unwrapped(module=module, shadowed=shadowed):
                if shadowed is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = shadowed

            module.forward = forward if name else whole
            undo.append(unwrapped)
        self.undo.append(tuple(undo))

    def undo_one(self):
        if self.undo:
            for undo in self.undo.pop():
                undo()

    def write(self):
        """Into numbers, past what torch counts."""
        kind = self.draw.choice(["base_layer.weight", "lora_A", "conv_in", "time_embedding"])

        def act(pipe):
            for name, parameter in pipe.unet.named_parameters():
                if kind in name:
                    parameter.data.mul_(1.02)

        self.both(act)

    def offload(self):
        if "offload" in self.done:
            return
        self.both(lambda pipe: cpu_offload_with_hook(pipe.unet, torch.device("cpu")))

        def back(pipe):
            remove_hook_from_module(pipe.unet)

        self.undo.append(tuple(lambda pipe=pipe: back(pipe) for pipe in (self.pipe, self.twin)))

    def exchange_a_processor(self):
        kind = self.draw.choice(["AttnProcessor", "AttnProcessor2_0"])
        from diffusers.models import attention_processor

        made = getattr(attention_processor, kind)
        self.both(lambda pipe: pipe.unet.set_attn_processor(made()))

    def finish(self):
        while self.undo:
            self.undo_one()
        self.disable()
        images = self.both(lambda pipe: call(pipe, num_inference_steps=2, **SIZE))
        assert torch.equal(*images)
        # After a call: a hook of ours that somebody has put back by now is gone again.
        one, other = ({k: v for k, v in self._state(pipe)} for pipe in (self.pipe, self.twin))
        assert one == other

    def _state(self, pipe):
        yield "pipe", shadows(pipe) - {"_num_timesteps"}
        yield "scheduler", shadows(pipe.scheduler)
        for name, module in pipe.unet.named_modules():
            own = vars(module)
            yield (
                name,
                (
                    type(module),
                    shadows(module),
                    [len(own[k]) for k in own if k.endswith("_hooks") and own[k] is not None],
                    dict(own.get("scaling", {})),
                    own.get("_active_adapter"),
                    [float(p.detach().double().sum()) for p in module.parameters(recurse=False)],
                ),
            )


def shadows(owner):
    """Names of attributes; a copy of what is enabled has its own methods among them."""
    own = vars(owner).items()
    return {name for name, value in own if getattr(value, "__self__", None) is not owner}


def set_in_callback(seed):
    def callback(pipe, i, t, tensors):
        names = NAMES[: 1 + (seed + i) % 3]
        pipe.set_adapters(names, [0.3 + 0.2 * i] * len(names))
        return tensors

    return callback


def encode_in_callback(seed):
    def callback(pipe, i, t, tensors):
        pipe.encode_prompt("others", "cpu", 1, True, "worse")
        assert pipe.num_timesteps >= 1
        return tensors

    return callback


CALLBACKS = [set_in_callback, encode_in_callback]
ACTS = [
    *[Both.paint] * 6,
    *[Both.enable] * 3,
    *[Both.set_adapters] * 3,
    Both.another_method,
    Both.disable,
    Both.switch_off,
    Both.switch_on,
    Both.exchange_the_scheduler,
    Both.fail,
    Both.encode,
    Both.copy,
    Both.call_the_unet,
    Both.hook,
    Both.wrap,
    *[Both.undo_one] * 2,
    Both.write,
    Both.offload,
    Both.exchange_a_processor,
]


def run(first, count, acts=7):
    """Sequences that begin where the one before has ended: restored, and as the twin."""
    both = Both(random.Random(first))
    for seed in range(first, first + count):
        both.draw, both.done = random.Random(seed), []
        for act in [Both.enable, *both.draw.choices(ACTS, k=acts), Both.paint, Both.finish]:
            both.done.append(act.__name__)
            try:
                act(both)
            except Exception as error:
                told = f"sequence {seed} of those from {first}: {' > '.join(both.done)}"
                raise AssertionError(told) from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(0, 200, 10))
def test_sequences(first):
    run(first, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(200))
def test_thousands_of_sequences(request, part):
    run(10_000 * request.config.option.seed + 100_000 + 25 * part, 25, acts=12)


def test_the_twin_is_a_judge():
    """What is not done to both is seen."""
    both = Both(random.Random(0))
    cf.enable(both.pipe)
    both.pipe.unet.conv_in = nn.Sequential(both.pipe.unet.conv_in, nn.Identity())
    both.pipe.set_adapters(["style_1"])
    with pytest.raises(AssertionError):
        both.paint()
    with pytest.raises(AssertionError):
        both.finish()
