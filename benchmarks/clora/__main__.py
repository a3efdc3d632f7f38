"""CLoRA against a straightforward loop: time in alternating rounds, peak memory, difference.

The loop is that of ``loop.py``: what the paper's procedure suggests. Both run the same schedule on
SD 1.5's layers at half their width, random weights.

python -m cmlora_fast.benchmarks.clora --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import cmlora_fast as cf
import torch
from torch import Tensor

from ..memory import peak_growth
from ..models import TEXT_WIDTH, adapter_names, call_inputs, load_adapters, sd_pipeline
from .loop import CLoRALoop, Step

__all__ = ["CONTENDERS", "measure", "method_of"]

CHANNELS, SIZE = (160, 320, 640, 640), 32
CONTENDERS = ("loop", "cmlora_fast")
GUIDANCE = 7.5


def measure(
    *,
    channels: tuple[int, ...] = CHANNELS,
    size: int = SIZE,
    concepts: int = 2,
    steps: int = 2,
    refinements: int = 2,
    rounds: int = 2,
    max_rows: int | None = None,
    weights: str = "auto",
    frozen: bool = False,
    memory: bool = True,
) -> dict[str, Any]:
    """Seconds per image, peak bytes and difference of both contenders, as plain data.

    Args:
        channels: Of the UNet's blocks.
        size: Sides of the latents.
        concepts: Rows beside the base row, one adapter each.
        steps: Denoising steps; the latents move in the first half of them.
        refinements: How often they move again at the first one.
        rounds: Timed images of each, in turns.
        max_rows, weights: Of ``cf.enable``.
        frozen: The loop's parameters record no gradients; as loaded by diffusers they do.
        memory: Measure peak memory too, each contender in a process of its own.
    """
    arguments = dict(channels=list(channels), size=size, concepts=concepts, steps=steps)
    arguments |= dict(refinements=refinements, max_rows=max_rows)
    arguments |= dict(weights=weights, frozen=frozen)
    calls = {name: _contender(name, arguments) for name in CONTENDERS}
    latents = {name: call() for name, call in calls.items()}  # also the warm-up
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    found: dict[str, Any] = {name: {"seconds": _spread(times)} for name, times in seconds.items()}
    if memory:
        for name in found:
            found[name]["peak_bytes"] = _peak_of_process(name, arguments)
    loop, ours = (found[name] for name in CONTENDERS)
    difference = (latents["cmlora_fast"] - latents["loop"]).abs().max() / latents[
        "loop"
    ].abs().max()
    return {
        "arguments": {**arguments, "rounds": rounds, "threads": torch.get_num_threads()},
        "contenders": found,
        "speedup": loop["seconds"]["median"] / ours["seconds"]["median"],
        "memory_ratio": ours["peak_bytes"] / loop["peak_bytes"] if memory else None,
        "difference": difference.item(),
    }


def _spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def _contender(name: str, arguments: dict[str, Any]) -> Callable[[], Tensor]:
    """A call that paints one image with a pipeline of its own and returns its latents."""
    pipe = sd_pipeline(tuple(arguments["channels"]))
    load_adapters(pipe, arguments["concepts"])
    method = method_of(arguments)
    inputs = call_inputs(pipe, arguments["size"], arguments["steps"])
    inputs["guidance_scale"] = GUIDANCE
    if name == "loop":
        pipe.unet.requires_grad_(not arguments["frozen"])
        loop = CLoRALoop(pipe.unet, pipe.scheduler, method, GUIDANCE, frozen=False)
        return lambda: _last(loop.steps(inputs["latents"], arguments["steps"])).latents
    cf.enable(pipe, method, max_rows=arguments["max_rows"], weights=arguments["weights"])
    return lambda: pipe(**inputs).images


def _last(steps: Iterator[Step]) -> Step:
    (step,) = deque(steps, maxlen=1)
    return step


def method_of(arguments: dict[str, Any]) -> cf.CLoRA:
    """One subject of two tokens per concept, in the form of "a sks cat and a dog"."""
    names = adapter_names(arguments["concepts"])
    rows = []
    for j, name in enumerate([None, *names]):
        tokens = [[3 * c + 2, 3 * c + 3][: 1 + (c == j - 1)] for c in range(len(names))]
        rows.append(cf.Row(name, "", "", tokens[j - 1] if j else (), tokens))
    draw = torch.Generator().manual_seed(7)
    return cf.CLoRA(
        rows=rows,
        iterative_steps=(0,),
        iterative_steps_steps=arguments["refinements"],
        row_prompt_embeds=torch.randn(len(rows), 77, TEXT_WIDTH, generator=draw),
        row_negative_prompt_embeds=torch.randn(1, 77, TEXT_WIDTH, generator=draw),
    )


def _peak_of_process(name: str, arguments: dict[str, Any]) -> int:
    """Bytes by which a fresh process that paints one image grows beyond its loaded model."""
    command = [sys.executable, "-m", "cmlora_fast.benchmarks.clora", "--peak-of", name]
    done = subprocess.run(
        [*command, "--arguments", json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def _own_peak(name: str, arguments: dict[str, Any]) -> int:
    call = _contender(name, arguments)
    return peak_growth(call, torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default in (("concepts", 2), ("steps", 2), ("refinements", 2), ("rounds", 2)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--size", type=int, default=SIZE, help="sides of the latents")
    parser.add_argument("--max-rows", type=int, default=None)
    parser.add_argument("--weights", choices=("auto", "fold", "delta"), default="auto")
    parser.add_argument("--frozen", action="store_true", help="freeze the loop's parameters")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    given = vars(parser.parse_args())
    as_json, peak_of, arguments = (given.pop(key) for key in ("json", "peak_of", "arguments"))
    if peak_of:
        print(_own_peak(peak_of, arguments))
        return
    results = measure(**given)
    print(json.dumps(results, indent=2) if as_json else _table(results))


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'contender':14} {'seconds (low..high)':>24} {'peak MiB':>10}"]
    for name, found in results["contenders"].items():
        s, peak = found["seconds"], found.get("peak_bytes")
        times = f"{s['median']:.2f} ({s['low']:.2f}..{s['high']:.2f})"
        lines.append(f"{name:14} {times:>24} {'' if peak is None else f'{peak / 2**20:10.0f}'}")
    ratio = results["memory_ratio"]
    lines.append(f"{results['speedup']:.2f} times as fast; difference {results['difference']:.1e}")
    lines += [] if ratio is None else [f"{ratio:.2f} of the loop's peak memory"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
