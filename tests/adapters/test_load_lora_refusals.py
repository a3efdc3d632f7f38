"""``load_lora`` says in one line what is wrong with a file, and leaves the pipeline as it was."""

import cmlora_fast as cf
import pytest
import torch
from safetensors.torch import save_file

from ..support import adapters, corpus, helpers

NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, weights=[0.8, -0.5])


def kohya(part, name):
    return corpus.kohya_stem(part, name), ".lora_down.weight", ".lora_up.weight"


def good(shape="sd", pattern=corpus.LINEAR):
    made = helpers.pipeline(shape, "dummy" if shape == "sd" else None)
    return corpus.plain(made, kohya, pattern=pattern).tensors


def with_nan():
    tensors = good()
    key = next(iter(tensors))
    return tensors | {key: tensors[key] * float("nan")}


FLUX = "lora_unet_double_blocks_0_img_attn_qkv"
BAD = {
    "NaN": (with_nan, "NaN or infinity in 1 of"),
    "norm": (lambda: good() | {"lora_unet_x.w_norm": torch.ones(4)}, "1 of its keys are not"),
    "Flux": (
        lambda: {f"{FLUX}.lora_down.weight": torch.ones(2, 4),
                 f"{FLUX}.lora_up.weight": torch.ones(4, 2)},
        "Flux",
    ),
    "VAE": (lambda: {"decoder.conv_in.weight": torch.ones(4, 4, 3, 3)}, "expected keys such as"),
    "checkpoint": (lambda: {"model.diffusion_model.x.weight": torch.ones(4)}, "expected keys"),
    "empty": (dict, "it is empty"),
    "SDXL": (lambda: good("sdxl"), "layers do not fit"),
}  # fmt: skip


def state(pipe):
    tensors = {name: t.clone() for name, t in pipe.unet.state_dict().items()}
    scales = {n: dict(m.scaling) for n, m in pipe.unet.named_modules() if hasattr(m, "scaling")}
    kinds = {name: type(module) for name, module in pipe.unet.named_modules()}
    return tensors, (scales, kinds, pipe.get_active_adapters(), pipe.get_list_adapters())


def assert_as_before(pipe, before):
    tensors, rest = state(pipe)
    assert rest == before[1] and tensors.keys() == before[0].keys()
    assert all(torch.equal(tensors[name], before[0][name]) for name in tensors)


def written(folder, tensors):
    path = folder / "some_file.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file(pipe, tmp_path, case):
    make, words = BAD[case]
    path, before = written(tmp_path, make()), state(pipe)
    with pytest.raises(ValueError) as caught:
        cf.load_lora(pipe, path)
    told = str(caught.value)
    assert told.startswith(str(path)) and words in told and "\n" not in told
    assert_as_before(pipe, before)


def test_a_file_that_is_cut_or_absent(pipe, tmp_path):
    path, before = written(tmp_path, good()), state(pipe)
    path.write_bytes(path.read_bytes()[:200])
    for given in (path, tmp_path / "nowhere.safetensors"):
        with pytest.raises(ValueError, match=given.name):
            cf.load_lora(pipe, given)
    assert_as_before(pipe, before)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_fault_in_the_middle_of_loading(pipe, tmp_path, loaded, monkeypatch):
    """Layers that only the new one touches are plain again."""
    if not loaded:
        pipe = helpers.pipeline("sd", "dummy")
    path, before = written(tmp_path, good(pattern=corpus.BOTH)), state(pipe)
    load = pipe.load_lora_weights

    def fails(*args, **kwargs):
        load(*args, **kwargs)
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(pipe, "load_lora_weights", fails)
    with pytest.raises(ValueError, match=r"some_file.*diffusers cannot load it: no room$"):
        cf.load_lora(pipe, path)
    assert_as_before(pipe, before)


def test_not_strict_loads_the_rest_and_others_keep_their_weights(pipe, tmp_path):
    before = state(pipe)[1][0]
    path = written(tmp_path, good() | {"lora_unet_x.w_norm": torch.ones(4)})
    report = cf.load_lora(pipe, path, strict=False, weight=0.4)
    assert report.unmatched == ("lora_unet_x.w_norm",) and report.matched
    assert pipe.get_active_adapters() == [*NAMES, "some_file"]
    now = state(pipe)[1][0]
    assert all(now[n][a] == scale for n, own in before.items() for a, scale in own.items())


@pytest.mark.parametrize("weight", [float("nan"), "1", None, True])
def test_weight(pipe, tmp_path, weight):
    with pytest.raises(ValueError, match="weight: expected a finite number"):
        cf.load_lora(pipe, written(tmp_path, good()), weight=weight)


@pytest.mark.parametrize("name", ["a.b", "", NAMES[0]])
def test_adapter_name(pipe, tmp_path, name):
    with pytest.raises(ValueError, match="adapter_name: "):
        cf.load_lora(pipe, written(tmp_path, good()), name)


def test_names_are_made_unique(pipe, tmp_path):
    path = written(tmp_path, good())
    found = [cf.load_lora(pipe, path).adapter_name for _ in range(2)]
    assert found == ["some_file", "some_file_2"]
