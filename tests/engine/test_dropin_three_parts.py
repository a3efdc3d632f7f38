"""A pipeline with guidance in three parts, which has no ``encode_prompt`` either."""

import cmlora_fast as cf
import pytest
import torch

from ..support import helpers
from ..support.helpers import relative
from ..support.pix2pix import NAMES, edit, pix2pix

RUN = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_three_guidance_parts():
    pipe = pix2pix()
    want = edit(pipe)
    with cf.accelerate(pipe):
        assert relative(edit(pipe), want) < RUN
        assert {step.full_rows for step in cf.summary(pipe).steps} == {3}


@pytest.mark.parametrize("method", ["composite", cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_methods_with_three_guidance_parts(method):
    pipe = pix2pix()
    plain = edit(pipe)
    with cf.accelerate(pipe, method):
        got = edit(pipe)
        steps = cf.summary(pipe).steps
        assert torch.equal(edit(pipe), got)
    assert [step.index for step in steps] == list(range(8))
    assert {step.full_rows + step.shallow_rows for step in steps} == {6}
    assert relative(got, plain) > 1e-3
    pipe.set_adapters(NAMES[:1])
    one = edit(pipe)
    with cf.accelerate(pipe, "composite"):
        assert relative(edit(pipe), one) < RUN  # of one adapter: that adapter
