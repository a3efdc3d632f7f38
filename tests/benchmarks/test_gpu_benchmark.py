import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cmlora_fast.benchmarks.gpu import __main__ as gpu
from cmlora_fast.benchmarks.gpu import kernels as gpu_kernels
from cmlora_fast.benchmarks.gpu import parts, pipelines, report
from cmlora_fast.benchmarks.gpu import timing as gpu_timing
from cmlora_fast.benchmarks.gpu.parts import Lease, rows_in
from cmlora_fast.benchmarks.ops.kernel_cases import CASES

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def shell(*arguments):
    shutil.which("bash") or pytest.skip("needs bash")
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *map(str, arguments)],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip


def lease(out, seconds=600.0, log=lambda line: None):
    return Lease(out, CPU, True, time.perf_counter() + seconds, log)


def test_dry_run_prints_the_plan(tmp_path):
    done = shell(tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("build") and lines[1].startswith("test")
    assert lines[3:] == parts.plan(small=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [(), ("out", "more"), ("out", "--only"), ("out", "--only", "sd16"), ("out", "--resume", "no"),
     ("out", "--seconds", "soon"), ("out", "--fast")],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_of_the_script(arguments):
    wrong = shell(*arguments)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def test_a_part_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--small", "--only", "sd15,sd16"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "sd16" in capsys.readouterr().err


def test_every_pipeline_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "REPEATS", 1)
    known = replace(pipelines.SMALL["sd15"], short=1, long=2)
    monkeypatch.setitem(pipelines.SMALL, "sd15", known)
    parts.PARTS["sd15"](lease(tmp_path))
    rows = rows_in(tmp_path / "sd15.jsonl")
    assert [(r["variant"], r["adapters"]) for r in rows] == [
        (v.name, v.adapters) for v in parts.EVERYONE
    ]
    assert not [row["error"] for row in rows if "error" in row]
    assert all(row["image_ms"] > 0 and row["steps"] == [1, 2] for row in rows)
    assert all(("graphs" in row) == (v.enabled is not None)
               for row, v in zip(rows, parts.EVERYONE, strict=True))  # fmt: skip


def test_small_run_of_the_kernels(tmp_path, monkeypatch):
    options = ["--small", "--out", str(tmp_path), "--only", "kernels"]
    monkeypatch.setattr("sys.argv", ["gpu", *options])
    gpu.main()
    limits, *cases = rows_in(tmp_path / "kernels.jsonl")
    assert limits["copy_bytes_per_s"] > 0 and limits["product_flops_per_s"] > 0
    wanted = [case.op for case in gpu_kernels.cases(CPU, True)]
    assert [case["op"] for case in cases] == wanted
    assert {op for op, its in CASES.items() if "cuda" in its.kernels} <= {*wanted}
    for case in cases:
        for variant, times in case["variants"].items():
            if gpu_kernels.backend_of(variant) is None:
                assert times["device_us"] > 0 and times["host_us"] > 0
            elif variant == "cuda" and not torch.cuda.is_available():
                assert "backend 'cuda' is not available" in times["error"]
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["kernels"]


def test_rows_that_are_there_are_not_measured_again(tmp_path):
    path, made = tmp_path / "kernels.jsonl", []
    path.write_text('{"op": "a", "case": "1"}\n{"op": "b", "error": "no"}\n{"op": "cut o')

    def measure(name):
        return lambda: made.append(name) or {"us": 1.0}

    for name in "ab":
        lease(tmp_path).row("kernels", {"op": name}, measure(name))
    assert made == ["b"]  # an error is tried again


def test_what_does_not_fit_is_named(tmp_path):
    said = []
    late = lease(tmp_path, seconds=-1.0, log=said.append)
    late.row("kernels", {"op": "a"}, lambda: pytest.fail("measured"))
    assert said == ['left out: kernels {"op": "a"}'] and not rows_in(tmp_path / "kernels.jsonl")


def test_a_failure_is_a_row(tmp_path):
    def fail():
        raise RuntimeError("out of memory")

    lease(tmp_path).row("sd15", {"variant": "x"}, fail)
    assert rows_in(tmp_path / "sd15.jsonl")[0]["error"] == "RuntimeError: out of memory"


def made_up(variant, adapters, step, fixed, model="SD 1.5 512x512"):
    image = fixed + 30 * step
    return {"model": model, "variant": variant, "adapters": adapters, "step_ms": step,
            "fixed_ms": fixed, "image_ms": image, "first_calls": [1.0, 1.0],
            "spread_ms": [[0, 1], [image, image]]}  # fmt: skip


def test_aims_are_judged():
    rows = [made_up(report.PEER, 0, 10.0, 4.0), made_up("lossless", 1, 8.0, 13.0),
            made_up("delta", 1, 9.0, 5.0), made_up("CMLoRA offline", 5, 20.0, 4.0)]  # fmt: skip
    lines = report.judged(rows, "SD 1.5 512x512")
    assert "| lossless step / compiled plain step | 0.80 | 0.9 | met |" in lines
    assert "| delta step / folded step, one adapter | 1.12 | 1.2 | met |" in lines
    assert "| CMLoRA image, five / compiled plain image | 1.99 | 1.6 | missed |" in lines
    assert any("over plain" in line or "9.00 | 8 | missed" in line for line in lines)
    assert sum("not measured" in line for line in lines) == 3


def test_variants_compute_the_same():
    torch.manual_seed(0)
    case = next(c for c in gpu_kernels.cases(CPU, small=True) if c.op == "lora_delta_")
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
