import pytest
import torch
from cmlora_fast import _C, ops
from cmlora_fast.ops import backends

from ..support.host_cuda import HostCuda

ISAS = [name for name, _, _ in _C.isas()]


@pytest.fixture(autouse=True)
def seed(request):
    """Fresh inputs in every run; a failure shows the option that repeats them."""
    chosen = request.config.option.seed
    print(f"--seed={chosen}")
    torch.manual_seed(chosen)


@pytest.fixture(params=ISAS)
def isa(request):
    """Runs the test once per instruction set."""
    try:
        forced = ops.force(isa=request.param)
        with forced:
            yield request.param
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda():
    """The ops by the CUDA kernels, run on the CPU."""
    module = pytest.importorskip("cmlora_fast._cuda_host", reason="needs CMLORA_HOST_CUDA=ON")
    with HostCuda(module).in_place_of_cuda() as host:
        yield host


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    try:
        with ops.force(backend=request.param):
            yield request.param
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda_kernels():
    entry = backends.backends()["cuda"]
    if not entry["available"]:
        pytest.skip(entry["reason"])
