import json
from types import SimpleNamespace

import pytest
import torch
from cmlora_fast import _C, ops
from cmlora_fast.ops import backends, reference


def current():
    return backends.ISAS[backends.isa()]


def test_every_backend_says_why():
    found = backends.backends()
    assert list(found) == ["cpu", "cuda", "triton", "torch"]
    for entry in found.values():
        assert isinstance(entry["available"], bool) and entry["reason"]
    assert found["cpu"]["available"] and found["cpu"]["detail"]["isa"] in backends.ISAS
    json.dumps(found)


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="this torch exports no thread pool")
def test_torch_lends_its_threads():
    assert backends.backends()["cpu"]["detail"]["thread_pool"] == "torch_parallel_for"
    assert _C.current_pool() == _C.Pool.torch


def test_force_nests_and_restores():
    outside = current()
    with ops.force(isa="scalar"):
        assert current() == "scalar"
        with ops.force(backend="torch"):
            assert current() == "scalar"
            assert backends.pick("op", torch.zeros(1), ("cpu",)) == "torch"
        assert backends.pick("op", torch.zeros(1), ("cpu",)) == "cpu"
    with pytest.raises(KeyError), ops.force(isa="scalar", backend="torch"):
        raise KeyError
    assert current() == outside
    assert backends.pick("op", torch.zeros(1), ("cpu",)) == "cpu"


def test_using_holds_without_looking(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name: pytest.fail("checked at every step"))
    with backends.using("torch"):
        with backends.using(None):
            assert backends.pick("op", torch.zeros(1), ("cpu",)) == "torch"
    assert backends.pick("op", torch.zeros(1), ("cpu",)) == "cpu"


def test_checks_without_the_report(monkeypatch):
    monkeypatch.setattr(backends, "backends", lambda: pytest.fail("built the whole report"))
    backends.check_backend("auto", ("auto", *backends.NAMES))
    for name in backends.NAMES:
        reason = backends.missing(name)
        if not reason:
            backends.check_backend(name)
            continue
        with pytest.raises(RuntimeError) as caught:
            backends.check_backend(name)
        assert str(caught.value) == f"backend {name!r} is not available: {reason}"


def test_force_runs_the_twin():
    latents = torch.randn(1, 4, 16, 16)
    with ops.force(backend="torch"):
        forced = ops.radial_amplitude(latents)
    assert torch.equal(forced[1], reference.radial_amplitude(latents)[1])


def test_unknown_and_missing_names():
    with pytest.raises(ValueError, match=r"force: expected isa of scalar.*; got 'sse9'"):
        with ops.force(isa="sse9"):
            pass
    with pytest.raises(ValueError, match=r"backend: expected one of cpu, cuda.*; got 'gpu'"):
        with ops.force(backend="gpu"):
            pass
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"^backend 'cuda' is not available: .*CUDA"):
            with ops.force(backend="cuda"):
                pass
    with pytest.raises(ValueError, match="gpu"):
        with ops.force(isa="scalar", backend="gpu"):
            pass
    assert current() == backends.ISAS[_C.best_isa()]


def test_plain_cpp_leaves_matrix_products_to_torch(monkeypatch):
    monkeypatch.setattr(backends, "_BEST_ISA", 0)
    y = torch.zeros(1)
    assert backends.pick("op", y, ("cpu",), matmul=True) == "torch"
    assert backends.pick("op", y, ("cpu",)) == "cpu"
    with ops.force(isa="scalar"):
        assert backends.pick("op", y, ("cpu",), matmul=True) == "cpu"


def test_missing_isa_names_the_reason(monkeypatch):
    monkeypatch.setattr(backends, "ISAS", ("scalar", "avx2", "avx512"))
    monkeypatch.setattr(_C, "isas", lambda: [("scalar", True, ""), ("avx2", False, "no AVX2")] * 2)
    with pytest.raises(RuntimeError, match="force: isa 'avx2' is not available: no AVX2"):
        with ops.force(isa="avx2"):
            pass


def test_only_a_processor_has_c_kernels():
    with ops.force(backend="cpu"), pytest.raises(RuntimeError, match=r"op: backend 'cpu' .* meta"):
        backends.pick("op", torch.zeros(1, device="meta"), ("cpu",))


def on_gpu(monkeypatch, missing, capability):
    """A tensor as pick() sees one on a GPU."""
    monkeypatch.setattr(_C, "cuda_missing", lambda: missing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends._runs_cuda.cache_clear()
    return SimpleNamespace(is_cpu=False, is_cuda=True, device="cuda:0", get_device=lambda: 0)


@pytest.mark.parametrize(
    "missing, capability, expected",
    [("", (9, 0), "cuda"), ("", (7, 5), "triton"), ("no driver", (9, 0), "triton")],
)
def test_choice_on_a_gpu(monkeypatch, missing, capability, expected):
    pytest.importorskip("triton")
    tensor = on_gpu(monkeypatch, missing, capability)
    try:
        assert backends.pick("op", tensor, ("cpu", "cuda", "triton")) == expected
        without = "cuda" if expected == "cuda" else "torch"
        assert backends.pick("op", tensor, ("cpu", "cuda")) == without
        assert backends.pick("op", tensor, ("cpu",)) == "torch"
    finally:
        backends._runs_cuda.cache_clear()


def test_launch_passes_the_current_stream(monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda device: 40 + device, raising=False
    )
    monkeypatch.setattr(_C.cuda, "combine", lambda *arguments: calls.append(arguments))
    backends.launch("combine", "cuda", SimpleNamespace(get_device=lambda: 2), "a", "b")
    assert calls == [("a", "b", 2, 42)]


def test_missing_cuda_is_explained(monkeypatch):
    if torch.version.cuda is None:
        monkeypatch.setattr(_C, "cuda_missing", lambda: "")
        assert "torch is built without CUDA" in backends.backends()["cuda"]["reason"]
    monkeypatch.setattr(_C, "cuda_missing", lambda: "the NVIDIA driver knows CUDA up to 12.4")
    entry = backends.backends()["cuda"]
    assert not entry["available"] and "12.4" in entry["reason"]
