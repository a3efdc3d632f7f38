"""``cmlora doctor``: what this machine has, what is missing, and whether the basics work."""

from __future__ import annotations

from typing import Any

import typer

from cmlora_fast.report import document, print_json, print_table

from .options import AsJson
from .quiet import quiet

__all__ = ["doctor"]

BASICS = ("cpu", "torch")  # backends that every installation has


def doctor(as_json: AsJson = False) -> None:
    """Show versions, machine and backends, and check that enable and disable work."""
    with quiet():
        results = examine()
    report = document("doctor", {}, **results)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["ok"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Backends with advice, the checks, and whether all that is needed works."""
    import cmlora_fast as cf

    from .selfcheck import checks

    backends = {
        name: {**state, "advice": "" if state["available"] else _advice(name, state)}
        for name, state in cf.backends().items()
    }
    ran = checks()
    needed = [backends[name]["available"] for name in BASICS]
    ok = all(needed) and all(check["ok"] for check in ran if check["needed"])
    return {"backends": backends, "checks": ran, "ok": ok}


def _advice(name: str, state: dict[str, Any]) -> str:
    reason = state["reason"]
    if name == "cuda":
        if "CMLORA_CUDA" in reason:
            return "nothing, or build with them: pip install . -C cmake.define.CMLORA_CUDA=ON"
        return "an NVIDIA GPU with its driver; without the kernels the ops run in Triton or torch"
    if name == "triton" and "not installed" in reason:
        return "on Linux with an NVIDIA GPU: pip install triton"
    if name == "triton":
        return "an NVIDIA GPU, its driver and a CUDA build of torch (https://pytorch.org)"
    return "reinstall: pip install --force-reinstall cmlora-fast"


def _print(report: dict[str, Any]) -> None:

    print_table("versions", ["package", "version"], _pairs(report["versions"], "not installed"))
    print_table("machine", ["", ""], _pairs(report["machine"], "unknown"))
    print_table(
        "backends",
        ["backend", "available", "reason", "what to do"],
        [
            [name, "yes" if s["available"] else "no", s["reason"], s["advice"]]
            for name, s in report["backends"].items()
        ],
    )
    print_table(
        "checks",
        ["check", "result", "detail"],
        [[c["name"], _verdict(c), c["detail"]] for c in report["checks"]],
    )
    print(
        "the basics work" if report["ok"] else "something that is needed does not work: see above"
    )


def _verdict(check: dict[str, Any]) -> str:
    return "ok" if check["ok"] else ("FAILED" if check["needed"] else "missing")


def _pairs(values: dict[str, Any], absent: str) -> list[list[Any]]:
    rows = []
    for name, value in values.items():
        if name.endswith("_bytes"):
            name, value = name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        rows.append([name, absent if value is None else value])
    return rows
