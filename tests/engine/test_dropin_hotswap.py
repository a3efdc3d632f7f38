"""An adapter written over in place, as diffusers' hotswap does: ``.data`` has no version."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def hotswap(pipe):
    """Another adapter under the same name, written over the first's tensors."""
    other = adapters.state_dict(helpers.pipeline("sd", "dummy"), adapters.EVERYTHING, seed=77)
    pipe.load_lora_weights(other, adapter_name="style_1", hotswap=True)


def through_data(pipe):
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B.style_1" in name:
            parameter.data.mul_(-1.0)


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("change", [hotswap, through_data])
def test_adapter_written_over_in_place(change, weights):
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING)
    cf.enable(pipe, weights=weights)
    before = call(pipe, num_inference_steps=3)
    change(pipe)
    got = call(pipe, num_inference_steps=3)
    cf.disable(pipe)
    want = call(pipe, num_inference_steps=3)
    assert relative(before, want) > 10 * RUN  # the change is seen
    assert relative(got, want) < RUN
    assert torch.equal(call(pipe, num_inference_steps=3), want)


def test_weight_that_is_not_a_number_is_refused():
    pipe = helpers.pipeline("sd", "dummy")
    adapters.add_many(pipe, NAMES, weights=[1.0, float("nan")])
    with pytest.raises(ValueError, match=r"adapter 'style_1'.*finite weight.*nan"):
        cf.enable(pipe)
    assert "forward" not in vars(pipe.unet)
