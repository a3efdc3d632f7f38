import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata, util
from pathlib import Path

import cmlora_fast
import pytest
from cmlora_fast import testbed

ROOT = Path(__file__).parents[1]
TRAINING = "cmlora_fast.testbed.training"
BUILD = "from scikit_build_core.build import build_{0} as build; print(build({1!r}))"


def run_build(kind, folder, where):
    """Name of what the PEP 517 hook builds, with the tools of this environment."""
    util.find_spec("scikit_build_core") or pytest.skip("needs scikit-build-core")
    command = [sys.executable, "-c", BUILD.format(kind, str(folder))]
    environment = {**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / done.stdout.split()[-1]


def test_kernels_are_packaged_under_our_name_only():
    top_level = {file.parts[0] for file in metadata.files("cmlora-fast")}
    assert "triton_kernels" not in top_level  # that name belongs to OpenAI's package
    assert util.find_spec("cmlora_fast.triton_kernels") is not None


def test_kernels_refuse_the_foreign_name(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=r"cmlora_fast\.triton_kernels"):
        __import__("triton_kernels")


def test_version_agrees():
    assert cmlora_fast.__version__ == metadata.version("cmlora-fast")


def test_every_public_name_is_there():
    for name in cmlora_fast.__all__:
        assert getattr(cmlora_fast, name).__name__.rpartition(".")[2] == name
    assert set(cmlora_fast.__all__) <= set(dir(cmlora_fast))
    with pytest.raises(AttributeError, match="'enabled'"):
        cmlora_fast.enabled  # noqa: B018


def test_help_does_not_wait_for_diffusers():
    script = (
        "import sys; from cmlora_fast.cli import app; assert 'diffusers' not in sys.modules;"
        "import cmlora_fast as cf, cmlora_fast.frontdoor; assert callable(cf.accelerate)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def retraining():
    """Modules behind the commands that the testbed's own README lists."""
    text = (Path(testbed.__file__).parent / "README.md").read_text()
    command = rf"python -m ({re.escape(TRAINING)}\.\w+)(?: (\w+))?"
    for module, stage in re.findall(command, text):
        yield f"{TRAINING}.train_{stage}" if stage else module


@pytest.mark.parametrize("module", sorted({*retraining(), f"{TRAINING}.train"}))
def test_what_retrains_imports_from_a_checkout(module):
    try:
        entry = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("python_avatars", "resvg_py"):
            raise
        pytest.skip(f"needs {error.name}, of the extra testbed")
    assert any(callable(getattr(entry, name, None)) for name in ("main", "train", "export"))


@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd")
def test_extension_links_no_torch():
    command = ["ldd", util.find_spec("cmlora_fast._C").origin]
    assert "torch" not in subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_wheel_from_source_distribution(tmp_path):
    with tarfile.open(run_build("sdist", tmp_path, ROOT)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    wheel = run_build("wheel", tmp_path, source)
    names = zipfile.ZipFile(wheel).namelist()
    kernels = {path.name for path in (ROOT / "triton_kernels").glob("*.py")}
    assert kernels <= {Path(n).name for n in names if n.startswith("cmlora_fast/triton_kernels/")}
    assert {Path(n).parts[0] for n in names} == {"cmlora_fast", names[-1].split("/")[0]}
    assert not [name for name in names if "/testbed/training" in name]
    assert "cmlora_fast/testbed/load.py" in names
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "from cmlora_fast import _C, ops; print(_C.__file__, ops.force)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {[str(tmp_path / 'site')]!r}"
         f" + {[p for p in sys.path if p]!r}; {script}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert str(tmp_path) in done.stdout, done.stderr
