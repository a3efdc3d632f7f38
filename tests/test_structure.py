"""Who imports whom, and how long files are: read from the sources, nothing is imported."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "cmlora_fast"
TREES = {"cmlora_fast": PACKAGE}
TREES |= {f"cmlora_fast.{name}": ROOT / name for name in ("benchmarks", "triton_kernels")}
LONGEST = 300
HALL = {"__init__", "__main__", "frontdoor"}  # modules of the package that stand in no folder

# What each room may import beside itself, from the lowest to the highest.
BELOW = {
    "_C": set(),
    "triton_kernels": set(),
    "ops": {"_C", "triton_kernels"},
    "hooks": set(),
    "adapters": {"ops", "hooks"},
    "unet": {"adapters", "ops", "hooks"},
    "methods": set(),
    "schedule": {"methods"},
    "clora": {"unet", "adapters", "ops", "methods", "schedule"},
    "engine": {"clora", "unet", "adapters", "ops", "hooks", "methods", "schedule"},
}
INNER = set(BELOW)
BELOW["frontdoor"] = INNER
BELOW["__init__"] = INNER | {"frontdoor"}  # the public names
BELOW["eval"] = BELOW["testbed"] = INNER | {"frontdoor", "__init__", "eval", "testbed"}
BELOW["report"] = set()
BELOW["benchmarks"] = BELOW["eval"] | {"report"}
BELOW["cli"] = BELOW["benchmarks"] | {"benchmarks"}
BELOW["__main__"] = {"cli"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and of what is linked into it."""
    found = {}
    for top, folder in TREES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [top, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(name: str) -> str:
    """``cmlora_fast.ops.reference`` is in ``ops``; a public name of the package in its hall."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else "__init__"


def imports(name: str) -> set[str]:
    """Modules that a module imports, absolute: also in functions and under TYPE_CHECKING."""
    path, found = MODULES[name], set()
    inside = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = inside.split(".")
                outer = parts[: len(parts) - node.level + 1]
                base = ".".join([*outer, *filter(None, [base])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if is_module(whole) else base)
    return found


def is_module(name: str) -> bool:
    return name in MODULES or name == "cmlora_fast._C"


IMPORTS = {name: imports(name) for name in MODULES}


def ours(name: str) -> set[str]:
    return {target for target in IMPORTS[name] if target.split(".")[0] == "cmlora_fast"}


def rooms() -> dict[str, set[tuple[str, str]]]:
    """Room -> (importing module, room that it imports), other rooms only."""
    found = defaultdict(set)
    for name in MODULES:
        for target in ours(name):
            if room(target) != room(name):
                found[room(name)].add((name, room(target)))
    return found


ROOMS = rooms()


def test_the_reader_reads():
    """Relative, absolute, nested and conditional imports, and the module that a name stands for."""
    assert "cmlora_fast.ops" in IMPORTS["cmlora_fast.clora.step"]
    assert "cmlora_fast.cli.app" in IMPORTS["cmlora_fast.__main__"] | IMPORTS["cmlora_fast.cli"]
    assert "cmlora_fast.frontdoor" not in IMPORTS["cmlora_fast.engine.engine"]
    assert {"ops", "_C", "triton_kernels"} <= {room(f"cmlora_fast.{r}.x") for r in BELOW}
    assert ("cmlora_fast.ops.lora_delta", "_C") in ROOMS["ops"]
    assert "benchmarks" in {target for _, target in ROOMS["cli"]}


def test_every_module_has_a_room():
    """A new folder finds its place in the order before it is used."""
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(BELOW)


@pytest.mark.parametrize("name", sorted(set(BELOW) - {"_C"}))
def test_imports_point_down(name):
    assert not {(who, what) for who, what in ROOMS[name] if what not in BELOW[name]}


def test_no_circle_between_rooms():
    edges = {name: {what for _, what in ROOMS[name]} for name in BELOW}
    while edges:
        free = [name for name, below in edges.items() if not below & set(edges)]
        assert free, f"a circle among {sorted(edges)}"
        for name in free:
            del edges[name]


@pytest.mark.parametrize("name", ["methods", "schedule"])
def test_data_and_plans_import_nothing_heavy(name):
    """They are read, compared and planned with where no tensor is."""
    for module in (m for m in MODULES if room(m) == name):
        for target in IMPORTS[module]:
            assert target.split(".")[0] not in ("torch", "diffusers", "numpy"), (module, target)


def test_training_is_imported_by_nobody_outside_it():
    inside = "cmlora_fast.testbed.training"
    for name in MODULES:
        if not name.startswith(inside):
            assert not [target for target in ours(name) if target.startswith(inside)], name


def test_tests_do_not_import_each_other():
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = [node.module or "", *(alias.name for alias in node.names)]
                shared = [n for n in names if n.rpartition(".")[2].startswith("test_")]
                assert not shared, (path.name, shared)


def test_files_stay_short():
    folders = (PACKAGE, ROOT / "benchmarks", ROOT / "triton_kernels", ROOT / "tests")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


def test_the_hall_is_nearly_empty():
    assert {path.stem for path in PACKAGE.glob("*.py")} <= HALL
