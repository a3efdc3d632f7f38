"""Kinds that are folded, layer by layer, against PEFT's own forward in float64."""

import copy

import peft
import pytest
import torch
from cmlora_fast.adapters import Execution, Watch, read_adapters
from cmlora_fast.adapters.weights import WeightStore
from cmlora_fast.unet.rows import Rows, segments_of
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..support.helpers import relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LAYERS = ["linear", "square", "point"]
LORA = {"r": 3, "lora_alpha": 5, "target_modules": LAYERS}
PATTERNS = {"rank_pattern": {"linear": 2, "square": 4}, "alpha_pattern": {"square": 7}}
OTHERS = {"r": 2, "alpha": 3, "target_modules": LAYERS}
CONFIGS = {
    "lora": peft.LoraConfig(**LORA, **PATTERNS),
    "dora": peft.LoraConfig(**LORA, **PATTERNS, use_dora=True),
    "bias": peft.LoraConfig(**LORA, **PATTERNS, lora_bias=True),
    "loha": peft.LoHaConfig(**OTHERS, **PATTERNS),
    "loha core": peft.LoHaConfig(**OTHERS, use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(**OTHERS, **PATTERNS),
    "lokr core": peft.LoKrConfig(**OTHERS, use_effective_conv2d=True, decompose_factor=2),
    "lokr both": peft.LoKrConfig(**{**OTHERS, "r": 1}, decompose_both=True),
}
MIXED = {"first": "dora", "plain": "lora", "biased": "bias", "second": "dora"}
WEIGHTS = {"first": 0.8, "plain": -0.6, "biased": 1.3, "second": 0.7}
SUBSETS = [tuple(MIXED), (), ("first",), ("plain",), ("biased", "second"), ("first", "plain")]
ROWS = (0, 0, 1, 2, 3, 4, 5, 5)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.square = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 6, 1, bias=False)


def made(kinds, weights, dtype=torch.float32):
    """Layers with adapters of these kinds, all of them active, with random numbers."""
    torch.manual_seed(0)
    model = Layers()
    for name, kind in kinds.items():
        peft.inject_adapter_in_model(copy.deepcopy(CONFIGS[kind]), model, name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "base_layer" not in key:
                parameter.add_(torch.randn(parameter.shape) * 0.3)
    activate(model, kinds)
    for module in tuners(model):
        for name, weight in weights.items():
            module.set_scale(name, weight)
    return model.to(dtype).eval().requires_grad_(False)


def tuners(model):
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def activate(model, names):
    for module in tuners(model):
        module.enable_adapters(bool(names))
        if names:
            module.set_adapter(list(names))


def inputs(name, count):
    draw = torch.Generator().manual_seed(1)
    shape = (count, 5, 12) if name == "linear" else (count, 8, 6, 6)
    return torch.randn(shape, generator=draw)


def right(model, name, x, subset):
    """By PEFT, in float64."""
    exact = copy.deepcopy(model).double()
    activate(exact, subset)
    return getattr(exact, name)(x.double())


def prepared(model, subsets, mode="fold", static=False):
    store = WeightStore()
    execution = Execution(weights=mode, static=static)
    return store.prepare(read_adapters(model), subsets, 1.0, execution), store.report


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_are_rounded_once(kind, dtype):
    model = made({"one": kind}, {"one": -0.7}, dtype)
    weights, _ = prepared(model, [("one",)])
    exact = copy.deepcopy(model).double()
    for name in LAYERS:
        base = getattr(exact, name).get_base_layer()
        one_by_one = torch.eye(base.weight[0].numel(), dtype=torch.float64)
        if name != "linear":  # a kernel, of which each picture is one number
            one_by_one = one_by_one.view(-1, *base.weight.shape[1:])
            for module in getattr(exact, name).modules():
                if isinstance(module, nn.Conv2d):
                    module.padding, module.stride = (0, 0), (1, 1)
        layer, zero = getattr(exact, name), torch.zeros_like(one_by_one[:1])
        want = (layer(one_by_one) - layer(zero)).flatten(1).T.reshape(base.weight.shape)
        got = weights[name].weights[0]
        assert got.dtype == dtype
        rounding = torch.finfo(dtype).eps / 2
        assert ((got - want).abs() <= 1.01 * rounding * want.abs() + 3e-6).all()


@pytest.mark.parametrize("mode", ["fold", "delta"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_kind(kind, mode):
    model = made({"one": kind}, {"one": -0.7})
    weights, report = prepared(model, [("one",)], mode)
    assert report.mode == ("delta" if (kind, mode) == ("lora", "delta") else "fold")
    for name in LAYERS:
        x = inputs(name, 2)
        got = weights[name](x, Rows(((0, 0, 2),), 2))
        assert relative(got, right(model, name, x, ["one"])) < 1e-5


@pytest.mark.parametrize("static", [False, True])
def test_several_on_one_layer(static):
    """Two DoRA, a plain LoRA and one with bias: in the order in which they are active."""
    model = made(MIXED, WEIGHTS)
    weights, _ = prepared(model, SUBSETS, static=static)
    rows = Rows(segments_of(ROWS), len(ROWS))
    if static:
        of_row = torch.tensor(ROWS, dtype=torch.int32)
        each = tuple((i, i, i + 1) for i in range(len(ROWS)))
        rows = Rows(each, len(ROWS), subsets=of_row, subset_of_row=of_row)
    for name in LAYERS:
        x = inputs(name, len(ROWS))
        got = weights[name](x, rows)
        for row, subset in enumerate(ROWS):
            want = right(model, name, x[row : row + 1], SUBSETS[subset])
            assert relative(got[row : row + 1], want) < 1e-5


def test_the_order_counts():
    """DoRA scales what those before it have added."""
    model, x = made(MIXED, WEIGHTS), inputs("linear", 1)
    first, second = ([*MIXED], [*reversed(MIXED)])
    assert relative(right(model, "linear", x, first), right(model, "linear", x, second)) > 1e-3
    activate(model, second)
    weights, _ = prepared(model, [tuple(second)])
    got = weights["linear"](x, Rows(((0, 0, 1),), 1))
    assert relative(got, right(model, "linear", x, second)) < 1e-5


TENSORS = [(kind, part) for kind, part in [
    ("dora", "magnitude"), ("bias", "lora_B.one.bias"), ("loha", "hada_w2_a"),
    ("loha core", "hada_t1"), ("lokr", "lokr_w1"), ("lokr both", "lokr_w2_b"),
]]  # fmt: skip


@pytest.mark.parametrize(("kind", "part"), TENSORS)
def test_writes_are_noticed(kind, part):
    """Through ``.data`` too, by which no version changes; and what was made before is made anew."""
    model, store = made({"one": kind}, {"one": 1.0}), WeightStore()
    watch, execution = Watch(model), Execution(weights="fold")
    before = watch.adapters()
    store.prepare(before, [("one",)], 1.0, execution)
    assert watch.adapters() is before
    for key, parameter in model.named_parameters():
        if part in key:
            parameter.data.mul_(1.5)
    now = watch.adapters()
    assert now is not before
    weights = store.prepare(now, [("one",)], 1.0, execution)
    changed = 0
    for name in LAYERS:
        x = inputs(name, 1)
        got = weights[name](x, Rows(((0, 0, 1),), 1))
        assert relative(got, right(model, name, x, ["one"])) < 1e-5
        changed += any(part in key for key, _ in getattr(model, name).named_parameters())
    assert changed


def test_nan_is_named():
    model = made({"one": "dora"}, {"one": 1.0})
    model.square.lora_magnitude_vector["one"].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'one': square\.lora_magnitude_vector\.weight holds NaN"):
        read_adapters(model)


def test_dora_of_weight_zero():
    """In one layer it has its magnitudes still, as PEFT has them; in all it is refused."""
    model = made({"one": "dora"}, {"one": 1.0})
    model.linear.set_scale("one", 0.0)
    x = inputs("linear", 1)
    weights, _ = prepared(model, [("one",)])
    got = weights["linear"](x, Rows(((0, 0, 1),), 1))
    assert relative(got, right(model, "linear", x, ["one"])) < 1e-5
    for module in tuners(model):
        module.set_scale("one", 0.0)
    with pytest.raises(ValueError, match="'one': DoRA of weight 0"):
        read_adapters(model)


def test_one_kind_around_another():
    model = made({"inner": "lora", "outer": "loha"}, {})
    with pytest.raises(ValueError, match=r"'outer'.*LoHa.*around adapters of another kind"):
        read_adapters(model)
