import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cmlora_fast.benchmarks.gpu import __main__ as gpu
from cmlora_fast.benchmarks.gpu import kernels as gpu_kernels
from cmlora_fast.benchmarks.gpu import timing as gpu_timing
from cmlora_fast.benchmarks.ops.kernel_cases import CASES

ROOT = Path(__file__).parents[2]


def test_dry_run_prints_the_plan(tmp_path):
    shutil.which("bash") or pytest.skip("needs bash")
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(tmp_path / "out"), "--dry-run"],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("build") and lines[1].startswith("test")
    assert lines[-1] == gpu.plan(small=False)[-1] and "SDXL 1024x1024, 5 adapters" in lines[-3]
    assert "CLoRA, no graphs" in lines[-1] and "compiled" in lines[-1]
    assert not (tmp_path / "out").exists()
    wrong = subprocess.run(["bash", "benchmarks/gpu.sh"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_small_run_measures_every_variant(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.gpu_pipelines, "SMALL", dict([*gpu.gpu_pipelines.SMALL.items()][:1]))
    monkeypatch.setattr("sys.argv", ["gpu", "--small", "--out", str(tmp_path)])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    on_gpus = [op for op, its in CASES.items() if set(its.kernels) - {"cpu"}]
    assert [case["op"] for case in found["kernels"]["cases"]] == on_gpus
    for case in found["kernels"]["cases"]:
        for variant, row in case["variants"].items():
            if gpu_kernels.backend_of(variant) is None or torch.cuda.is_available():
                assert row["device_us"] > 0 and row["host_us"] > 0 and row["share_of_copy"] > 0
            elif variant == "cuda":
                assert "backend 'cuda' is not available" in row["error"]
    rows = found["pipelines"]["results"]
    every = (*gpu.gpu_pipelines.THEIRS, *gpu.gpu_pipelines.OURS, *gpu.gpu_pipelines.CLORA)
    assert [row["variant"] for row in rows] == [*every]
    assert all(row["ms_per_step"] > 0 for row in rows) and not found["pipelines"]["left_out"]
    ours = [row for row in rows if row["variant"].startswith("ours")]
    assert all(row["host_ms_per_step"] > 0 and not row["graphs"]["used"] for row in ours)


def test_what_does_not_fit_is_named():
    results = gpu.run_kernels(torch.device("cpu"), gpu.Clock(0), True, lambda line: None)
    on_gpus = [op for op, its in CASES.items() if set(its.kernels) - {"cpu"}]
    assert not results["cases"] and len(results["left_out"]) == len(on_gpus)


def test_variants_compute_the_same():
    torch.manual_seed(0)
    case = next(gpu_kernels.cases(torch.device("cpu"), small=True))
    results = {}
    for variant in ("base", "folded", "shrink, expand", "PEFT", "triton"):
        torch.manual_seed(1)  # the same x and y
        found = case.make(variant)()
        found = torch.stack(found) if isinstance(found, list) else found
        results[variant] = None if found is None else found.view(5, 48, 32).float()
    torch.manual_seed(1)
    y = torch.randn(2, 10, 24, 32, dtype=torch.bfloat16)[1].view(5, 48, 32).float()
    delta = results["folded"] - results["base"]
    assert delta.std() > 1
    torch.testing.assert_close(results["shrink, expand"] - y, delta, rtol=0.05, atol=0.2)
    torch.testing.assert_close(results["PEFT"] - y, 0.8 * delta, rtol=0.05, atol=0.2)
    assert results["triton"] is None  # ours write into y
    assert gpu_timing.copies_for(1, torch.device("cpu")) == 1


def test_a_tuned_table_is_valid(tmp_path):
    tune = pytest.importorskip("cmlora_fast.benchmarks.gpu.tune")
    measured = {("lora_shrink", 8192, 320, 32): next(tune.configs("lora_shrink")),
                ("lora_expand", 512, 1280, 16): next(tune.configs("lora_expand"))}  # fmt: skip
    tune.write(tmp_path / "sm90.json", "a GPU", tune.rows_of(measured))
    rows = tune.tuning.load_table(tmp_path / "sm90.json")["rows"]
    assert rows[0]["max_tokens"] == 8192 and rows[0]["op"] == "lora_shrink"
    assert next(row for row in rows if row["op"] == "lora_expand")["max_rank"] == 16


def test_two_products_stand_beside_ours_in_every_case():
    cases = [c for c in gpu_kernels.cases(torch.device("meta")) if c.op == "lora_delta_"]
    assert len(cases) == 60 and all({*gpu_kernels.BOTH} <= {*case.variants} for case in cases)


@pytest.mark.parametrize("mix", gpu_kernels.MIXES)
def test_two_products_compute_what_ours_does(mix):
    case = gpu_kernels._lora("small", (24, 32, 40), mix, 8, torch.device("cpu"))
    results = []
    for variant in gpu_kernels.BOTH:
        torch.manual_seed(1)  # the same x and y
        call = case.make(variant)
        y = call.args[0] if variant == "triton" else None
        found = call()
        results.append((found if y is None else y).flatten().float())
    torch.manual_seed(1)
    rows = 2 * len(gpu_kernels.MIXES[mix])
    torch.randn(rows, 24, 32, dtype=torch.bfloat16)
    y = torch.randn(rows, 24, 40, dtype=torch.bfloat16).flatten().float()
    ours, products = (result - y for result in results)
    assert ours.std() > 1
    torch.testing.assert_close(ours, 0.8 * products, rtol=0.05, atol=0.2)


def test_the_fastest_configuration_that_compiles_is_taken():
    tune = pytest.importorskip("cmlora_fast.benchmarks.gpu.tune")
    chosen = []

    def measure(run):
        if chosen[-1]["num_warps"] == 4:
            raise RuntimeError("out of shared memory")
        return 1.0 + (chosen[-1]["BLOCK_M"] != 64)

    found = tune.best("lora_expand", [], measure, chosen.append)
    assert found["num_warps"] == 8 and found["BLOCK_M"] == 64
