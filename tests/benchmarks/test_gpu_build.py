import pytest
from cmlora_fast.benchmarks.gpu import build as gpu_build

OUTPUT = """
ptxas info    : Compiling entry function '_ZN6cmlora4cuda46_GLOBAL__N___17\
lora_delta_kernelINS_8BFloat16ELb1EEEvNS1_6ParamsE' for 'sm_90a'
ptxas info    : Function properties for _ZN
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers, 8256 bytes smem
ptxas info    : Compiling entry function '_ZN6cmlora19cache_refresh_kernelI5uint4EEvNS1_6ParamsE'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 0 barriers
"""


def test_what_ptxas_says():
    spilled, plain = (
        gpu_build._read("a.cu", gpu_build._short_name(name), 90, text)
        for name, text in gpu_build.PTXAS_KERNEL.findall(OUTPUT)
    )
    assert spilled == gpu_build.Report(
        "a.cu", "lora_delta_kernel<BFloat16, true>", 90, 128, 16, 8256
    )
    assert spilled.bad and not plain.bad
    assert (plain.kernel, plain.registers) == ("cache_refresh_kernel<uint4>", 46)


@pytest.mark.skipif(gpu_build.find_nvcc() is None, reason="needs nvcc")
def test_cuda_compiles(tmp_path):
    source = gpu_build.SOURCES / "cuda" / "cache_refresh.cu"
    reports = gpu_build.compile_cuda(source, 90, gpu_build.find_nvcc(), tmp_path)
    assert len(reports) == 3 and not any(report.bad for report in reports)
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void kernel() { nothing(); }")
    with pytest.raises(RuntimeError, match=r"broken\.cu, sm_90:"):
        gpu_build.compile_cuda(broken, 90, gpu_build.find_nvcc(), tmp_path)


def test_triton_cases_are_those_of_the_tables():
    pytest.importorskip("triton")
    from cmlora_fast.benchmarks.gpu import triton_cases

    cases, quick = triton_cases.cases(), triton_cases.cases(quick=True)
    assert len(set(map(triton_cases.name_of, cases))) == len(cases)
    assert all(case in cases for case in quick) and len(quick) < len(cases)
    assert {module for module, *_ in cases} == set(triton_cases.KERNELS)


def test_a_failure_is_the_exit_code(monkeypatch, capsys):
    bad = gpu_build.Report("a.cu", "kernel<>", 90, 255, 8, 0)
    monkeypatch.setattr(gpu_build, "build", lambda *a: ([bad], ["kernel<>, sm_90: spills"]))
    monkeypatch.setattr("sys.argv", ["gpu_build"])
    with pytest.raises(SystemExit, match=r"^(True|1)$"):
        gpu_build.main()
    assert "FAILED kernel<>, sm_90" in capsys.readouterr().err


def test_an_installed_package_has_nothing_to_compile(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_build, "SOURCES", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu_build"])
    with pytest.raises(SystemExit, match="2"):
        gpu_build.main()
    assert "needs a checkout" in capsys.readouterr().err
