import json

import pytest
import torch
from cmlora_fast.benchmarks.ops import baselines, kernel_cases
from cmlora_fast.ops import reference

ROWS = {"one": [[0]], "all on every row": [[0, 1, 2]], "each its own": [[0], [2], [1]]}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_every_lora_baseline_computes_the_op(rows):
    y, *rest = kernel_cases.lora.lora_inputs(rows, 9, 24, 40, [8] * 3, torch.float32)
    expected = y.clone()
    reference.lora_delta_(expected, *rest)
    calls = baselines.lora_delta_calls(y, *rest)
    pairs = [name for name in calls if name.startswith("pair ")]
    assert len(pairs) == (3 if len(rows) > 1 else 2)
    for name in [*pairs, "packed"]:
        before = y.clone()
        calls[name]()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        y.copy_(before)
    torch.testing.assert_close(calls["our layer"](), calls["PEFT layer"](), rtol=1e-4, atol=1e-4)


def test_numpy_baseline_computes_the_op():
    latents = torch.randn(2, 4, 24, 17)
    means, profiles = reference.radial_amplitude(latents)
    for image, mean, profile in zip(latents.numpy(), means, profiles, strict=True):
        value, bins = baselines.numpy_profile(image)
        assert value == pytest.approx(mean.item(), rel=1e-4)
        torch.testing.assert_close(torch.from_numpy(bins).float(), profile, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", kernel_cases.CASES)
def test_work_is_that_of_the_formula(op):
    its = kernel_cases.CASES[op]
    name, make = next(its.cases(torch.float32, "quick"))
    inputs = make()
    moved, flops = its.moved(*inputs), its.flops and its.flops(*inputs)
    assert moved > 0 and (flops is None or flops > 0), name
    products = ("attention", "lora_delta_", "lora_fold")
    assert (flops is not None) == (op in products)
    if op == "lora_delta_":  # 8192 tokens, 320 to 320, rank 4
        assert flops == 2 * 8192 * 4 * 640
        assert moved == 4 * (3 * 8192 * 320 + 2 * 4 * 320)


def test_document_holds_machine_and_what_ran(cmlora, tmp_path):
    arguments = ["--quick", "--seconds", "0.01", "--op", "combine_", "--op", "radial_amplitude"]
    code, out, err = cmlora("bench", "kernels", *arguments, "--json", "--out", str(tmp_path))
    assert code == 0, err
    report = json.loads(out)
    assert report["arguments"]["op"] == ["combine_", "radial_amplitude"]
    assert report["machine"]["cores"] and report["versions"]["torch"] and report["date"]
    assert report["rates"]["copy_gb_per_s"] > 0
    row = next(row for row in report["results"] if row["op"] == "radial_amplitude")
    assert row["microseconds"]["ours"]["median"] > 0 and row["speedup"]["numpy"] > 0
    assert row["error"] <= 2 * row["twin_error"] + 1e-6
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"kernels-{report['date']}-")
    first = json.loads(path.read_text())
    assert len(first["results"]) == len(report["results"])
    arguments[-1] = "cache_refresh_"  # instead of radial_amplitude, and combine_ again
    code, _, err = cmlora("bench", "kernels", *arguments, "--out", str(tmp_path))
    assert code == 0, err
    added = json.loads(path.read_text())
    assert added["arguments"]["op"] == ["radial_amplitude", "combine_", "cache_refresh_"]
    assert added["results"][0] in first["results"] and added["rates"] == first["rates"]


def test_an_unknown_op_is_one_line(cmlora):
    code, out, err = cmlora("bench", "kernels", "--op", "add_")
    assert code != 0 and not out
    assert "--op: expected names of attention, geglu" in err and "got add_" in err


def test_an_unknown_instruction_set_is_one_line(cmlora):
    code, out, err = cmlora("bench", "kernels", "--isa", "mmx", "--op", "combine_")
    assert code == 1 and not out
    assert "expected isa of scalar" in err
