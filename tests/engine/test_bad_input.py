"""Bad input: what was wrong, what it should be, and a pipeline that is as before."""

import re
from types import SimpleNamespace

import cmlora_fast as cf
import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ..support import adapters, helpers
from ..support.helpers import call, relative

NAMES = ["character_1", "background_1"]
quiet = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES)


def run(pipe, steps=2, **given):
    return call(pipe, num_inference_steps=steps, **given)


def untouched(pipe) -> bool:
    return "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)


def refused(pipe, method=None, *, says=(), error=ValueError, **options):
    """``enable`` or, where that cannot know yet, the call raises; then all is as before."""
    image = run(pipe, 8)
    with pytest.raises(error) as caught:
        cf.enable(pipe, method, **options)
        run(pipe, 8)
    cf.disable(pipe)
    assert untouched(pipe)
    torch.testing.assert_close(run(pipe, 8), image, rtol=0, atol=0, equal_nan=True)
    for word in says:
        assert re.search(word, str(caught.value)), f"{word!r} not in: {caught.value}"


ARGUMENTS = [
    (dict(method="magic"), ["method", "magic", "composite", "cmlora"]),
    (dict(method=3), ["method", "3"]),
    (dict(method=cf.CMLoRA), ["method"]),  # the class, not an instance
    (dict(weights="melt"), ["weights", "melt", "fold", "delta"]),
    (dict(backend="abacus"), ["backend", "abacus", "cpu", "torch"]),
    (dict(max_rows=0), ["max_rows", "0"]),
    (dict(max_rows=2.5), ["max_rows", "2.5"]),
]


@quiet
@pytest.mark.parametrize(("options", "says"), ARGUMENTS, ids=helpers.label)
def test_arguments_of_enable(pipe, options, says):
    refused(pipe, says=says, **options)


@quiet
def test_refused_enable_leaves_the_method_before_it(pipe):
    cf.enable(pipe, "composite")
    composite = run(pipe)
    for bad in (
        dict(method="magic"),
        dict(weights="melt"),
        dict(method=cf.Merge(cache_layer_id=9)),
    ):
        with pytest.raises(ValueError):
            cf.enable(pipe, **bad)
        assert torch.equal(run(pipe), composite)


FIELDS = [
    (cf.Merge, dict(cache_interval=0), ["Merge", "cache_interval", "0", "nonuniform"]),
    (cf.Merge, dict(cache_interval=1.5), ["cache_interval", "1.5"]),
    (cf.Merge, dict(cache_interval="often"), ["cache_interval", "often"]),
    (cf.Merge, dict(cache_interval=2, uniform=False), ["center|pow", "None"]),
    (cf.Merge, dict(cache_layer_id=-1), ["cache_layer_id", "-1"]),
    (cf.Switch, dict(switch_step=0), ["Switch", "switch_step", "0"]),
    (cf.Switch, dict(stage_fraction=1.5), ["stage_fraction", "1.5"]),
    (cf.CMLoRA, dict(variant="research"), ["CMLoRA", "variant", "research", "offline"]),
    (cf.CMLoRA, dict(amplitude="cubic"), ["amplitude", "cubic", "log"]),
    (cf.CMLoRA, dict(decay="slow"), ["decay", "slow", "frozen"]),
    (cf.CMLoRA, dict(late="never"), ["late", "never", "low_only"]),
    (cf.CMLoRA, dict(dominant_full="always"), ["dominant_full", "always", "every_step"]),
    (cf.CMLoRA, dict(max_age=0), ["max_age", "0"]),
    (cf.CMLoRA, dict(threshold="high"), ["threshold", "high"]),
    (cf.CMLoRA, dict(low_frequency="background_1"), ["low_frequency"]),  # a name, not a list
    (cf.CMLoRA, dict(reference_compat=True, decay="frozen"), ["decay", "reference_compat"]),
    (cf.CMLoRA, dict(reference_compat=True, max_age=4), ["max_age", "reference_compat"]),
    (cf.Switch, dict(reference_compat=True, partition=True), ["partition", "reference_compat"]),
]


@pytest.mark.parametrize(("kind", "fields", "says"), FIELDS, ids=helpers.label)
def test_fields_of_methods(kind, fields, says):
    with pytest.raises(ValueError) as caught:
        kind(**fields)
    for word in says:
        assert re.search(word, str(caught.value)), f"{word!r} not in: {caught.value}"


ARRAYS = [
    (cf.Merge, "cache_interval", np.array([1, 2])),
    (cf.CMLoRA, "variant", np.array(["online", "offline"])),
    (cf.CMLoRA, "low_frequency", np.zeros(1000)),
]


@pytest.mark.parametrize(("kind", "field", "value"), ARRAYS, ids=helpers.label)
def test_an_array_is_named_and_not_printed_whole(kind, field, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{field}: expected") as caught:
        kind(**{field: value})
    assert len(str(caught.value)) < 400


def test_numbers_of_numpy_are_kept_as_plain_data():
    method = cf.CMLoRA(
        cache_interval=np.int64(3), threshold=np.float32(0.5), cutoff=np.float64(0.25)
    )
    assert repr(method) == repr(cf.CMLoRA(cache_interval=3, threshold=0.5, cutoff=0.25))
    concepts = [cf.Concept("cat_lora", "cat")]
    method = cf.CLoRA(concepts=concepts, max_iter_to_alter=np.int32(4))
    assert repr(method) == repr(cf.CLoRA(concepts=concepts, max_iter_to_alter=4))


@pytest.mark.parametrize("kind", [cf.Merge, cf.Switch, cf.Composite, cf.CMLoRA])
def test_unknown_field(kind):
    with pytest.raises((TypeError, ValueError), match="strength"):
        kind(strength=1)


@pytest.mark.parametrize("thing", [None, "a name", SimpleNamespace(transformer=1), object()])
def test_without_a_unet(thing):
    with pytest.raises(TypeError, match="UNet2DConditionModel"):
        cf.enable(thing)


@pytest.mark.parametrize("thing", [None, "a name", 3])
def test_what_cannot_be_a_pipeline(thing):
    for ask in (cf.summary, cf.disable, cf.accelerate):
        with pytest.raises(TypeError, match=f"pipe: .* pipeline; got {type(thing).__name__}"):
            with ask(thing):
                pass


def test_another_unet(pipe):
    other = diffusers.UNet2DModel(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"UNet2DConditionModel.*UNet2DModel"):
        cf.enable(SimpleNamespace(unet=other, scheduler=pipe.scheduler))


def test_unavailable_backend(pipe):
    states = cf.backends()
    assert set(states) >= {"cpu", "cuda", "triton", "torch"}
    missing = [name for name, state in states.items() if not state["available"]]
    if not missing:
        pytest.skip("every backend is available here")
    for name in missing:
        assert states[name]["reason"]
        with pytest.raises(RuntimeError, match=re.escape(states[name]["reason"])):
            cf.enable(pipe, backend=name)
        assert untouched(pipe)


@quiet
@pytest.mark.parametrize("method", [cf.CMLoRA, cf.Switch])
def test_low_frequency_adapter_that_is_not_loaded(pipe, method):
    refused(pipe, method(low_frequency=["nowhere"]), says=["nowhere", "background_1"])


OUTSIDE = [
    dict(cache_layer_id=2, cache_block_id=0),  # two blocks: 0 and 1
    dict(cache_layer_id=0, cache_block_id=2),  # one layer: 0, or 1 for the next block's first
    dict(cache_layer_id=1, cache_block_id=1),  # past the last block
]


@quiet
@pytest.mark.parametrize("cut", OUTSIDE, ids=helpers.label)
@pytest.mark.parametrize("method", [cf.Merge, cf.CMLoRA])
def test_cut_outside_the_unet(pipe, method, cut):
    field = "cache_layer_id" if cut["cache_layer_id"] == 2 else "cache_(block|layer)_id"
    refused(pipe, method(cache_interval=2, **cut), says=[field, r"\d"])


@quiet
def test_schedule_that_does_not_exist(pipe):
    method = cf.Merge(cache_interval=2, uniform=False, center=3, pow=1.01)
    refused(pipe, method, says=["center", "pow"])


@quiet
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [None, "composite", "cmlora"])
def test_adapter_that_is_not_finite(pipe, method, value):
    for name, parameter in pipe.unet.named_parameters():
        if "to_q.lora_B.background_1" in name:
            parameter.data[0, 0] = value
            break
    refused(pipe, method, says=["background_1", "to_q", "(?i)nan|inf|finite"])


@quiet
def test_inactive_adapter_may_be_broken(pipe):
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B.background_1" in name:
            parameter.data.fill_(float("nan"))
    pipe.set_adapters("character_1")
    want = run(pipe)
    with cf.accelerate(pipe):
        assert relative(run(pipe), want) < 1e-4


@quiet
def test_adapter_for_another_architecture(pipe):
    """diffusers refuses it while enabled as it does otherwise; keys and shapes are named."""
    image = run(pipe)
    wrong = adapters.state_dict(helpers.pipeline("sd", "one_layer"))
    wide = adapters.state_dict(helpers.pipeline("sd", "dummy"))
    wide = {k: torch.cat([v, v], -1) if "lora_A" in k else v for k, v in wide.items()}
    cf.enable(pipe)
    with pytest.raises(Exception, match=r"lora_A.*(shape|size)|(shape|size).*lora_A") as caught:
        pipe.load_lora_weights(wide, adapter_name="wide")
    assert "to_q" in str(caught.value)
    with pytest.raises(RuntimeError, match=r"down_blocks.*shape torch.Size"):
        pipe.load_lora_weights(wrong, adapter_name="wrong")
    cf.disable(pipe)
    pipe.set_adapters(NAMES)
    assert torch.equal(run(pipe), image)


@quiet
def test_size_not_divisible_by_eight(pipe):
    image = run(pipe)
    cf.enable(pipe, "cmlora")
    with pytest.raises(ValueError, match=r"divisible by 8.*100"):
        run(pipe, height=100, width=128)
    cf.disable(pipe)
    assert torch.equal(run(pipe), image)


@quiet
def test_truncated_file(pipe, tmp_path):
    image = run(pipe)
    path = tmp_path / "cut.safetensors"
    save_file(adapters.state_dict(helpers.pipeline("sd", "dummy")), path)
    path.write_bytes(path.read_bytes()[:-1000])
    cf.enable(pipe)
    with pytest.raises(Exception, match=r"(?i)safetensors|incomplete|deserializ"):
        pipe.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="cut")
    cf.disable(pipe)
    assert pipe.get_list_adapters()["unet"] == NAMES
    assert torch.equal(run(pipe), image)
