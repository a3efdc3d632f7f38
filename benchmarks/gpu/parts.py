"""The parts of a GPU benchmark, each of which writes its rows as they come."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cmlora_fast import ops

from . import kernels as gpu_kernels
from . import pipelines
from .profile import by_kernel
from .timing import copies_for, device_us, host_us

__all__ = ["PARTS", "Lease", "limits", "plan"]


@dataclass
class Lease:
    """What is left of a machine, and where its rows go.

    Args:
        out: Folder of ``<part>.jsonl``; rows that stand there are not measured again.
        device: Where everything runs.
        small: Sizes that a CPU manages.
        stop: Nothing is begun after this time.
        log: Told every row.
    """

    out: Path
    device: torch.device
    small: bool
    stop: float
    log: Callable[[str], None]

    def models(self) -> dict[str, pipelines.Model]:
        return pipelines.SMALL if self.small else pipelines.MODELS

    def row(self, part: str, key: dict, make: Callable[[], dict]) -> None:
        """Measure a row, unless it is there or time is up; an error is a result too."""
        path = self.out / f"{part}.jsonl"
        if any(key.items() <= row.items() and "error" not in row for row in rows_in(path)):
            return
        if time.perf_counter() > self.stop:
            self.log(f"left out: {part} {json.dumps(key)}")
            return
        try:
            row = key | make()
        except Exception as error:
            row = key | {"error": f"{type(error).__name__}: {error}"[:300]}
        with path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")
        self.log(f"{part} {json.dumps(row, default=str)[:400]}")


def rows_in(path: Path) -> list[dict]:
    """What a part has written; a line that was cut off says nothing."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def limits(device: torch.device, small: bool) -> dict[str, float]:
    """Bytes per second of a copy (read and written), and operations per second of a product."""
    side = 256 if small else 8192
    source = torch.ones(side * side * 8 // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    copy = device_us([lambda: target.copy_(source)] * 4, device)
    product = device_us([lambda: torch.mm(a, b, out=out)] * 4, device)
    return {
        "copy_bytes_per_s": 2e6 * source.numel() * source.element_size() / copy,
        "product_flops_per_s": 2e6 * side**3 / product,
    }


def run_kernels(lease: Lease) -> None:
    with torch.inference_mode():
        reached: dict[str, float] = {}

        def of_limits() -> dict:
            reached.update(limits(lease.device, lease.small))
            return dict(reached)

        lease.row("kernels", {"op": "limits"}, of_limits)
        for case in gpu_kernels.cases(lease.device, lease.small):
            key = {"op": case.op, "case": case.name}
            lease.row("kernels", key, lambda case=case: _measured(case, lease.device))


def _measured(case: gpu_kernels.Case, device: torch.device) -> dict:
    """Every variant of a case; one that this machine lacks gives its reason."""
    found = {}
    for variant in case.variants:
        try:
            calls = [case.make(variant) for _ in range(copies_for(case.bytes, device))]
            with ops.force(backend=gpu_kernels.backend_of(variant)):
                times = {
                    "device_us": device_us(calls, device),
                    "host_us": host_us(calls[:8], device),
                }
        except Exception as error:
            times = {"error": f"{type(error).__name__}: {error}"[:300]}
        found[variant] = times
    return {"bytes": case.bytes, "flops": case.flops, "variants": found}


def run_pipelines(
    lease: Lease,
    part: str,
    known: pipelines.Model,
    variants: Sequence[pipelines.Variant],
    measure: Callable[..., dict] = pipelines.measure,
) -> None:
    pipe = pipelines.load(known, lease.device)
    adapters = pipelines.Adapters(pipe, lease.small)
    for variant in variants:

        def make(variant: pipelines.Variant = variant) -> dict:
            adapters.load(variant.adapters)
            return measure(pipe, known, variant)

        key = {"model": known.name, "variant": variant.name, "adapters": variant.adapters}
        lease.row(part, key, make)


def run_throughput(lease: Lease) -> None:
    for known in lease.models().values():
        _throughput_of(lease, known)


def _throughput_of(lease: Lease, known: pipelines.Model) -> None:
    pipe, variant = pipelines.load(known, lease.device), pipelines.OURS[0]
    pipelines.Adapters(pipe, lease.small).load(variant.adapters)
    for images in pipelines.IMAGES[:2] if lease.small else pipelines.IMAGES:
        measured = functools.partial(pipelines.measure, pipe, known, variant, images)
        lease.row("throughput", {"model": known.name, "images": images}, measured)


def run_profile(lease: Lease) -> None:
    for known in lease.models().values():
        run_pipelines(lease, "profile", known, pipelines.PROFILED, by_kernel)


def _of(model: str, variants: Sequence[pipelines.Variant], part: str) -> Callable[[Lease], None]:
    return lambda lease: run_pipelines(lease, part, lease.models()[model], variants)


EVERYONE = (*pipelines.OURS, *pipelines.THEIRS)
PARTS: dict[str, Callable[[Lease], None]] = {
    "peer-sd15": _of("sd15", [pipelines.PEER], "peer-sd15"),
    "sd15": _of("sd15", EVERYONE, "sd15"),
    "peer-sdxl": _of("sdxl", [pipelines.PEER], "peer-sdxl"),
    "sdxl": _of("sdxl", EVERYONE, "sdxl"),
    "kernels": run_kernels,
    "profile": run_profile,
    "clora": _of("sd15", pipelines.CLORA, "clora"),
    "throughput": run_throughput,
}


def plan(small: bool) -> list[str]:
    """What the parts measure, in order."""
    models = pipelines.SMALL if small else pipelines.MODELS

    def names(variants) -> str:
        return ", ".join(f"{v.name} ({v.adapters})" if v.adapters else v.name for v in variants)

    lines = []
    for key, known in models.items():
        lines.append(f"peer-{key:12} {known.name}: {pipelines.PEER.name}")
        lines.append(f"{key:17} {known.name}, adapters in brackets: {names(EVERYONE)}")
    cases = gpu_kernels.cases(torch.device("meta"), small)
    lines += [f"kernels           {c.op}, {c.name}: {', '.join(c.variants)}" for c in cases]
    lines.append(f"profile           by kernel: {names(pipelines.PROFILED)}")
    lines.append(f"clora             {names(pipelines.CLORA)}")
    images = ", ".join(map(str, pipelines.IMAGES))
    return [*lines, f"throughput        lossless, {images} images a call"]
