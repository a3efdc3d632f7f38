"""What ``cmlora eval`` does once its arguments are read."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cmlora_fast import eval as lab
from cmlora_fast.adapters.fit import check_lora
from cmlora_fast.eval import report as reports
from cmlora_fast.eval.judge import Judge, judge_all
from cmlora_fast.eval.presets import PRESETS, Preset

from .errors import CliError
from .generation import ENGINE, load_generation, plain_preset
from .lora_files import LoraSpec
from .method_list import NO_LORA, cached, parse_methods
from .pipelines import EMBEDDED, add_loras, check_scheduler
from .progress import progress
from .report import write_json
from .scorer_list import make_judge, make_scorers

__all__ = ["run", "write"]

FEW = "4"  # combinations of the embedded testbed, unless asked: a few minutes


def run(arguments: dict[str, Any]) -> dict[str, Any]:
    """Paint, score, compare; returns what the JSON document tells beside the arguments.

    Whatever can be wrong is found before the first image: methods, testbed, LoRA files, scorers,
    then the model.
    """
    a = arguments
    candidates = _candidates(a)
    check_scheduler(a["scheduler"])
    testbed = _testbed(a)
    combinations = _combinations(a, testbed)
    entries = {entry.id: entry for combination in combinations for entry in combination}
    specs = [LoraSpec(name, testbed.paths[name], 1.0) for name in entries]
    files = [check_lora(spec.path) for spec in specs]
    scorers = make_scorers(a)
    judge = make_judge(a, len(candidates))
    pipe, generation = load_generation(a, _preset(a), testbed.negative_prompt)
    add_loras(pipe, specs, files)
    wants = frozenset().union(*(scorer.wants for scorer in scorers))
    seeds = range(a["seed"], a["seed"] + a["seeds"])
    samples = lab.make_samples(testbed, combinations, seeds, candidates, generation, wants)
    folder = Path(a["out"])
    jobs = len(lab.jobs_of(samples))
    with progress(jobs, "images") as advance:
        results = lab.evaluate(
            pipe,
            samples,
            scorers,
            folder,
            advance,
            by_combination=a["by_combination"],
            tie=a["tie"],
            **{key: a[key] for key in ENGINE},
        )
    if judge is not None:
        results["judge"] = _judge(judge, samples, folder, a["tie"])
    return {
        **results,
        "generation": asdict(generation),
        "combinations": [[entry.id for entry in c] for c in combinations],
        "scorers": [scorer.identity for scorer in scorers],
        "manifest": str(folder / "manifest.jsonl"),
    }


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
    page = reports.markdown("Methods compared", facts, report)
    (folder / "report.md").write_text(page, encoding="utf-8")


def _judge(judge: Judge, samples: list[lab.Sample], folder: Path, tie: float) -> dict[str, Any]:
    pairs = sum(sample.candidate != samples[0].candidate for sample in samples)
    with progress(pairs, "judging") as advance:
        return judge_all(judge, samples, lab.ImageStore(folder), advance, tie)


def _candidates(a: dict[str, Any]) -> list[lab.Candidate]:
    intervals = [text.strip() for text in a["intervals"].split(",") if text.strip()]
    methods = cached(parse_methods(a["methods"], clora=True), intervals)
    return [lab.Candidate(label, m, loras=label != NO_LORA) for label, m in methods.items()]


def _testbed(a: dict[str, Any]) -> lab.Testbed:
    if a["testbed"] == EMBEDDED:
        testbed = lab.embedded(a["style"])
        given = {"base_prompt": a["prompt"], "negative_prompt": a["negative"]}
        return replace(testbed, **{k: text for k, text in given.items() if text is not None})
    return lab.composlora(
        a["testbed"],
        a["style"],
        lora_path=a["lora_path"],
        lora_info=a["lora_info_path"],
        prompt=a["prompt"],
        negative=a["negative"],
    )


def _combinations(a: dict[str, Any], testbed: lab.Testbed) -> list[tuple]:
    if a["compose"] > len(testbed.info):
        raise CliError(
            f"--compose: expected 1 to {len(testbed.info)}, the testbed's categories; "
            f"got {a['compose']}"
        )
    every = lab.generate_combinations(testbed.info, a["compose"])
    if not every:
        raise CliError(f"--testbed {a['testbed']}: no character, so nothing to compose")
    return lab.sample(every, a["combinations"] or (FEW if a["testbed"] == EMBEDDED else "all"))


def _preset(a: dict[str, Any]) -> Preset:
    if a["testbed"] == EMBEDDED:
        return plain_preset(EMBEDDED)
    if a["style"] in PRESETS:
        return PRESETS[a["style"]]
    raise CliError(f"--image-style: expected one of {', '.join(PRESETS)}; got {a['style']!r}")
