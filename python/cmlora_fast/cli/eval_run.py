"""What ``cmlora eval`` does once its arguments are read."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cmlora_fast as cf
from cmlora_fast import eval as lab
from cmlora_fast.adapters.fit import check_lora
from cmlora_fast.eval.judge import Judge, judge_all
from cmlora_fast.eval.presets import PRESETS, Preset, plain_preset
from cmlora_fast.eval.tables import markdown
from cmlora_fast.report import document, progress, write_json

from .errors import CliError
from .generation import load_generation
from .lora_files import LoraSpec
from .method_list import NO_LORA, cached, parse_methods
from .options import words
from .pipelines import add_loras, check_scheduler
from .requests import EvalRequest
from .scorer_list import make_judge, make_scorers

__all__ = ["run", "write"]

FEW = "4"  # combinations of the embedded testbed, unless asked: a few minutes


def run(request: EvalRequest) -> dict[str, Any]:
    """Paint, score, compare; returns the JSON document.

    Whatever can be wrong is found before the first image: methods, testbed, LoRA files, scorers,
    then the model.
    """
    candidates = _candidates(request)
    check_scheduler(request.scheduler)
    testbed = _testbed(request)
    combinations = _combinations(request, testbed)
    entries = {entry.id: entry for combination in combinations for entry in combination}
    specs = [LoraSpec(name, testbed.paths[name], 1.0) for name in entries]
    files = [check_lora(spec.path) for spec in specs]
    scorers = _scorers(request)
    judge = make_judge(request, len(candidates))
    pipe, generation = load_generation(request.filled(_preset(request)), testbed.negative_prompt)
    add_loras(pipe, specs, files)
    if request.controls:
        names = [entry.id for entry in combinations[0]]
        shallow_of = functools.partial(lab.shallow_share, pipe.unet, *_size(pipe, generation))
        candidates = lab.with_controls(candidates, names, generation.steps, shallow_of)
    wants = frozenset().union(*(scorer.wants for scorer in scorers))
    seeds = range(request.seed, request.seed + request.seeds)
    samples = lab.make_samples(testbed, combinations, seeds, candidates, generation, wants)
    how = {"by_combination": request.by_combination, "tie": request.tie, **request.engine}
    with progress(len(lab.jobs_of(samples)), "images") as advance:
        results = lab.evaluate(pipe, samples, scorers, request.out, advance, **how)
    _add_costs(results["methods"], pipe, candidates, generation)
    if judge is not None:
        results["judge"] = _judge(judge, samples, request)
    return document(
        "eval",
        asdict(request),
        **results,
        generation=asdict(generation),
        combinations=[[entry.id for entry in c] for c in combinations],
        scorers=[scorer.identity for scorer in scorers],
        manifest=str(request.out / "manifest.jsonl"),
    )


def write(report: dict[str, Any], folder: Path) -> None:
    """``results.json`` and ``report.md``."""
    write_json(report, folder / "results.json")
    generation, machine = report["generation"], report["machine"]
    facts = {
        "testbed": report["arguments"]["testbed"],
        "model": generation["model"],
        "combinations": f"{len(report['combinations'])} of {report['arguments']['compose']} LoRAs",
        "seeds": report["arguments"]["seeds"],
        "painting": f"{generation['steps']} steps, guidance {generation['guidance_scale']:g}",
        "scorers": ", ".join(report["scorers"]),
        "machine": f"{machine['processor']}, {machine['threads']} threads, {machine['gpus']}",
    }
    page = markdown("Methods compared", facts, report)
    (folder / "report.md").write_text(page, encoding="utf-8")


def _judge(judge: Judge, samples: list[lab.Sample], request: EvalRequest) -> dict[str, Any]:
    pairs = sum(sample.candidate != samples[0].candidate for sample in samples)
    with progress(pairs, "judging") as advance:
        return judge_all(judge, samples, lab.ImageStore(request.out), advance, request.tie)


def _size(pipe: Any, generation: lab.Generation) -> tuple[int, int]:
    """Height and width for ``shallow_share``, whose latents are an eighth of them."""
    sides = (generation.height, generation.width)
    latents = [side // pipe.vae_scale_factor if side else None for side in sides]
    return tuple(8 * (side or pipe.unet.config.sample_size) for side in latents)


def _add_costs(
    methods: dict[str, Any],
    pipe: Any,
    candidates: list[lab.Candidate],
    generation: lab.Generation,
) -> None:
    """``cost``: UNet calls, in images of one LoRA at the run's steps, where they are known."""
    parts = 2 if generation.guidance_scale > 1 else 1
    for candidate in candidates:
        found, method = methods[candidate.label], candidate.method
        full, shallow = found["full_rows"], found["shallow_rows"]
        share = 0.0
        if shallow:
            share = lab.shallow_share(pipe.unet, *_size(pipe, generation), method)
        known = share is not None and not isinstance(method, cf.CLoRA) and not callable(method)
        cost = (full + (share or 0.0) * shallow) / (parts * generation.steps)
        found["cost"] = cost if known else None


def _candidates(request: EvalRequest) -> list[lab.Candidate]:
    methods = cached(parse_methods(request.methods, clora=True), words(request.intervals))
    return [lab.Candidate(label, m, loras=label != NO_LORA) for label, m in methods.items()]


def _testbed(request: EvalRequest) -> lab.Testbed:
    if request.testbed == lab.EMBEDDED:
        testbed = lab.embedded(request.style)
        given = {"base_prompt": request.prompt, "negative_prompt": request.negative}
        return replace(testbed, **{k: text for k, text in given.items() if text is not None})
    return lab.composlora(
        request.testbed,
        request.style,
        lora_path=request.lora_path,
        lora_info=request.lora_info_path,
        prompt=request.prompt,
        negative=request.negative,
    )


def _combinations(request: EvalRequest, testbed: lab.Testbed) -> list[tuple]:
    if request.compose > len(testbed.info):
        raise CliError(
            f"--compose: expected 1 to {len(testbed.info)}, the testbed's categories; "
            f"got {request.compose}"
        )
    every = lab.generate_combinations(testbed.info, request.compose)
    if not every:
        raise CliError(f"--testbed {request.testbed}: no character, so nothing to compose")
    some = FEW if request.testbed == lab.EMBEDDED else "all"
    return lab.sample(every, request.combinations or some)


def _scorers(request: EvalRequest) -> list[Any]:
    style = request.style if request.testbed == lab.EMBEDDED else None
    names = "embedded" if style and request.scorers is None else request.scorers or ""
    return make_scorers(words(names), request, style)


def _preset(request: EvalRequest) -> Preset:
    if request.testbed == lab.EMBEDDED:
        return plain_preset(lab.EMBEDDED)
    if request.style in PRESETS:
        return PRESETS[request.style]
    raise CliError(f"--image-style: expected one of {', '.join(PRESETS)}; got {request.style!r}")
