import os
import secrets

# Read when torch loads OpenMP. Threads that spin while they wait cost a busy machine milliseconds
# per parallel region: the tests of the ops took 95 seconds, and take 4 without.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when our kernels are imported


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, help="repeat the random inputs of an earlier run")


def pytest_configure(config):
    if config.option.seed is None:
        config.option.seed = secrets.randbelow(2**31)


def pytest_collection_modifyitems(config, items):
    no_gpu = pytest.mark.skip(reason="needs a CUDA device")
    slow = pytest.mark.skip(reason="takes minutes; run with -m slow")
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_GPU:
            item.add_marker(no_gpu)
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(slow)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def loras(tmp_path_factory):
    """Name -> file of good LoRAs and of broken ones."""
    from .support import lora_files

    return lora_files.write(tmp_path_factory.mktemp("loras"))
