"""A UNet that is compiled from outside: what it compiles ends at the engine, and says so."""

import time

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters
from ..support.helpers import call, relative

RUN = 1e-4
STEPS = 2


@pytest.fixture
def pipe():
    torch._dynamo.reset()
    return adapters.fresh(["character_1", "style_1"], adapters.ATTENTION)


def in_place(pipe):
    pipe.unet.compile(backend="eager")


def wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


@pytest.mark.parametrize("method", [None, "composite", "cmlora"], ids=str)
@pytest.mark.parametrize("first", ["compile", "enable", "enable and call"])
@pytest.mark.parametrize("compiled", [in_place, wrapped])
def test_compiled_before_or_after(pipe, compiled, first, method):
    with cf.accelerate(pipe, method):
        want = call(pipe, num_inference_steps=STEPS)
    if first == "compile":
        compiled(pipe)
        cf.enable(pipe, method)
    else:
        cf.enable(pipe, method)
        if "call" in first:
            call(pipe, num_inference_steps=STEPS)
        compiled(pipe)
    started = time.perf_counter()
    with pytest.warns(UserWarning, match='graphs="compile"'):
        got = call(pipe, num_inference_steps=STEPS)
    assert time.perf_counter() - started < 20  # traced through, it takes minutes
    assert relative(got, want) < RUN
    assert len(cf.summary(pipe).steps) == STEPS
    cf.disable(pipe)
    assert "forward" not in vars(getattr(pipe.unet, "_orig_mod", pipe.unet))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:pipe.unet")
def test_our_own_compiling_goes_on_inside(pipe):
    want = call(pipe, num_inference_steps=4)
    cf.enable(pipe, graphs="compile")
    in_place(pipe)
    assert relative(call(pipe, num_inference_steps=4), want) < RUN
    graphs = cf.summary(pipe).graphs
    assert graphs["used"], graphs["reason"]
    assert graphs["recorded"]
