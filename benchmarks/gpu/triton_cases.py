"""The Triton kernels as they are launched: block sizes of every tuning table, types and strides."""

import importlib
import math
import pkgutil

from cmlora_fast import triton_kernels
from cmlora_fast.triton_kernels import tuning
from cmlora_fast.triton_kernels.rank_lanes import TABLE
from triton.compiler import ASTSource

ELEMENTS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
RANKS = {"lora_shrink": (16, 32, 64, 128), "lora_expand": (16, 32, 64)}  # BLOCK_R
LAUNCHES = {  # constants beside those of the tables
    "lora_shrink": [{"EVEN_K": True}, {"EVEN_K": False}],
    "lora_expand": [{"PARTS": 1}, {"PARTS": 4}],
}
MODULES = {
    found.name: importlib.import_module(f"{triton_kernels.__name__}.{found.name}")
    for found in pkgutil.iter_modules(triton_kernels.__path__)
}
KERNELS = {
    name: kernel
    for name, module in MODULES.items()
    if (kernel := getattr(module, f"_{name}_kernel", None))
}
INTEGERS = ("lanes_ptr", "slots_ptr", "row_ptr_ptr", "row_slot_ptr", "rows_ptr")
FLOATS = ("row_scale_ptr", "weights_ptr")
OPTIONS = ("num_warps", "num_stages")


def cases(quick: bool = False):
    """(module, dtype, BLOCK_R, config); quick leaves out float16 and half of the ranks."""
    dtypes = [name for name in ELEMENTS if not (quick and name == "float16")]
    seen = []
    for path in sorted(tuning.TABLES.glob("*.json")):
        rows = tuning.load_table(path)["rows"]
        for op in tuning.BLOCKS:
            for dtype in dtypes:
                mine = [row for row in rows if dtype in row["dtypes"]]
                for rank in RANKS[op][1:] if quick else RANKS[op]:
                    for config, fewest in _reachable(op, mine, rank):
                        launches = [its for its in LAUNCHES[op] if _can_be(its, fewest, mine)]
                        seen += [(op, dtype, rank, config | its) for its in launches]
    for name in KERNELS:
        built = getattr(MODULES[name], "BUILDS", ())  # those without have tables
        seen += [(name, dtype, 0, config) for dtype in dtypes for config in built]
    return [case for index, case in enumerate(seen) if case not in seen[:index]]


def _reachable(op, rows, rank):
    """Configs that a table gives for a rank, down to the row that takes all; their least tokens."""
    fewest = 0
    for row in (row for row in rows if row["op"] == op):
        most = row.get("max_tokens", math.inf)
        if rank <= row.get("max_rank", rank) and fewest < most:
            yield row["config"], fewest
            if "max_features" not in row:
                fewest = most


def _can_be(launch, tokens, rows):
    """Whether the sums over K are cut in launch's parts for that many tokens or more."""
    parts = launch.get("PARTS", 1)
    cut = [row.get("max_tokens") for row in rows if row["config"].get("SPLIT_K") == parts]
    return parts == 1 or any(most is None or tokens < most for most in cut)


def name_of(case):
    module, dtype, rank, config = case
    sizes = "x".join(str(n) for key, n in config.items() if key.startswith("BLOCK"))
    text = f"{module}, {dtype}, {sizes}"
    if rank:
        text += f", rank {rank}, {config['num_warps']} warps, {config['num_stages']} stages"
    parts = _parts(config)
    text += f", {parts} parts" * (parts > 1)
    given = (key.lower() for key in ("GUIDED", "PER_PIXEL", "EVEN_K") if config.get(key))
    return ", ".join([text, *given])


def _parts(config):
    """In which the sums over K are cut."""
    return config.get("SPLIT_K", config.get("PARTS", 1))


def source_of(module, dtype, rank, config):
    """Source and options of a case, specialised as a launch on plain tensors is."""
    kernel = KERNELS[module]
    constants = {name: value for name, value in config.items() if name not in OPTIONS}
    if rank:
        precision = "tf32x3" if dtype == "float32" else "tf32"
        constants |= {"BLOCK_R": rank, "PRECISION": precision}
        shrinks = module == "lora_shrink"
        constants |= {"TABLE": TABLE, "a_col_stride": 1} if shrinks else {"b_col_stride": 1}
    signature = {name: _type(name, dtype, constants) for name in kernel.arg_names}
    if "h_ptr" in signature and (dtype == "float16" or _parts(config) > 1):
        signature["h_ptr"] = "*fp32"
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name.endswith(("_ptr", "_stride"))
        or name in ("tokens", "K", "N", "R", "width", "C", "H", "W")
        if name not in constants
    }
    options = {name: config[name] for name in OPTIONS if name in config}
    return ASTSource(kernel, signature, constants, aligned), options


def _type(name, dtype, constants):
    if name in constants:
        return "constexpr"
    if name in INTEGERS:
        return "*i32"
    if name in FLOATS:
        return "*fp32"
    if name.endswith("_ptr"):
        return "*" + ELEMENTS[dtype]
    return "fp32" if name == "guidance_scale" else "i32"
