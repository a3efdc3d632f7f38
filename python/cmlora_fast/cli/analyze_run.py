"""What ``cmlora analyze`` does once its arguments are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import cmlora_fast as cf
from cmlora_fast import eval as lab
from cmlora_fast.adapters.fit import check_lora
from cmlora_fast.eval import plots
from cmlora_fast.eval.difference import difference
from cmlora_fast.eval.frequency import profile_order
from cmlora_fast.eval.macs import SD15, count_unet, macs_per_sample
from cmlora_fast.eval.paint import call, paint
from cmlora_fast.eval.samples import uncached
from cmlora_fast.eval.similarity import ALIKE, alike, similarity
from cmlora_fast.eval.timeline import lanes
from cmlora_fast.report import document, progress

from .errors import CliError
from .generation import adapters_of, load_with_loras, parse_loras, prompt_for
from .lora_files import LoraSpec
from .method_list import NO_LORA, parse_methods
from .options import words
from .pipelines import check_scheduler
from .requests import AnalyzeRequest

__all__ = ["run"]

PROFILE = "frequency_profile.json"
GIGA = 1e9


@dataclass
class Study:
    """The pipeline, the image that is studied, and what has been found."""

    pipe: Any
    job: lab.Job
    label: str
    specs: list[LoraSpec]
    request: AnalyzeRequest
    advance: Callable[..., None] = lambda *_, **__: None
    pictures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def paint(self, job: lab.Job, **options: Any) -> tuple[Any, cf.Summary]:
        painted = call(self.pipe, job, **{**self.request.engine, **options})
        self.advance()
        return painted

    def save(self, name: str, figure: Any, data: Any) -> None:
        """The picture, and what it shows as JSON beside it."""
        path = self.request.out / f"{name}.png"
        figure.savefig(path, dpi=130)
        (self.request.out / f"{name}.json").write_text(json.dumps(data, allow_nan=False) + "\n")
        self.pictures.append(str(path))


def run(request: AnalyzeRequest) -> dict[str, Any]:
    """Measure and draw; returns the JSON document."""
    parts = words(request.parts)
    for part in parts:
        if part not in PARTS:
            raise CliError(f"--parts: expected some of {', '.join(PARTS)}; got {part!r}")
    methods = parse_methods(request.method)
    if len(methods) > 1 or NO_LORA in methods:
        raise CliError(f"--method: expected one method; got {request.method!r}")
    label, method = next(iter(methods.items()))
    check_scheduler(request.scheduler)
    specs, style = parse_loras(request)
    prompt = prompt_for(request, specs, style)
    files = [check_lora(spec.path) for spec in specs]
    pipe, generation = load_with_loras(request, specs, files)
    job = lab.Job(generation, prompt, adapters_of(specs), method, request.seed)
    study = Study(pipe, job, label, specs, request)
    paintings = sum(COUNTS[part](len(specs), request.seeds) for part in parts)
    with progress(paintings, "images") as study.advance:
        for part in parts:
            PARTS[part](study)
    results = {"pictures": study.pictures, "notes": study.notes, "generation": asdict(generation)}
    return document("analyze", asdict(request), **results, **study.found)


def _frequency(study: Study) -> None:
    request = study.request
    profile = profile_order(
        study.pipe,
        {spec.name: spec.weight for spec in study.specs},
        [study.job.prompt],
        lambda prompt, seed: paint(study.pipe, replace(study.job, prompt=prompt, seed=seed)),
        range(request.seed, request.seed + request.seeds),
        study.advance,
    )
    places = [study.request.out / PROFILE]
    places += [study.specs[0].path.parent / PROFILE] if request.beside else []
    for place in places:
        profile.save(place)
    study.save("profiles", plots.profiles_figure(profile), profile.profiles)
    data = {"added": profile.added, "amplitude": profile.amplitude}
    study.save("frequency", plots.frequency_figure(profile), data)
    told = {"order": profile.order, "low_frequency": profile.low_frequency, "added": profile.added}
    study.found["frequency"] = {**told, "saved": [str(place) for place in places]}
    study.notes.append(f"order by added high frequency: {', '.join(profile.order)}")
    if profile.low_frequency:
        names = ",".join(profile.low_frequency)
        study.notes.append(f"use it: --method-option low_frequency={names}")


def _similarity(study: Study) -> None:
    _, summary = study.paint(replace(study.job, method=cf.Composite()), record=True)
    if not summary.features:
        raise CliError(f"--parts similarity: no features here: {summary.cache.get('reason')}")
    cosines = {name: similarity(features) for name, features in summary.features.items()}
    matrices = {name: matrix.numpy() for name, matrix in cosines.items()}
    data = {
        name: {"cosine": matrix.tolist(), "alike": alike(matrix)}
        for name, matrix in cosines.items()
    }
    study.save("similarity", plots.similarity_figure(matrices), data)
    study.found["similarity"] = {
        "threshold": ALIKE,
        "neighbours": {name: float(matrix.diagonal(1).mean()) for name, matrix in cosines.items()},
    }


def _timeline(study: Study) -> None:
    _, summary = study.paint(study.job)
    told = lanes(summary)
    study.save("timeline", plots.timeline_figure(told, f"Cache timeline: {study.label}"), told)
    study.found["timeline"] = {
        name: {"full_steps": sum(lane["full"]), "oldest": max(age or 0 for age in lane["age"])}
        for name, lane in told["adapters"].items()
    }


def _difference(study: Study) -> None:
    plain = uncached(study.job)
    if plain is None:
        study.notes.append(f"difference: {study.label} caches nothing")
        return
    reference, image = study.paint(plain)[0], study.paint(study.job)[0]
    found = difference(image, reference)
    figure = plots.difference_figure((reference, image), found, study.label)
    curves = {"cached": found.profiles[0].tolist(), "uncached": found.profiles[1].tolist()}
    study.save("difference", figure, {**found.numbers, "profiles": curves})
    for name, picture in (("uncached", reference), ("cached", image)):
        picture.save(study.request.out / f"{name}.png")
    study.found["difference"] = found.numbers


def _macs(study: Study) -> None:
    runs = {study.label: study.job, "merge": replace(study.job, method=cf.Merge())}
    if (plain := uncached(study.job)) is not None:
        runs[f"{study.label}, uncached"] = plain
    runs["composite, uncached"] = replace(study.job, method=cf.Composite())
    counted, rows = {}, {}
    for label, job in runs.items():
        with count_unet(study.pipe.unet) as counts:
            _, summary = study.paint(job, backend="torch")  # which torch can count
        counted[label] = counts
        rows[label] = [(step.full_rows, step.shallow_rows) for step in summary.steps]
    title = f"Multiply-accumulates, counted: {study.job.generation.model}"
    study.save("macs", plots.macs_figure(counted, title), counted)
    per_sample = {"Stable Diffusion 1.5, 512 x 512": macs_per_sample(SD15, 512, 512)}
    unet = study.pipe.unet
    if not unet.config.addition_embed_type and not unet.config.encoder_hid_dim_type:
        side = unet.config.sample_size * 8
        size = [study.request.height or side, study.request.width or side]
        per_sample["this model"] = macs_per_sample(dict(unet.config), *size, study.job.method)
    study.found["macs"] = {
        "per_image": {label: sum(counts) for label, counts in counted.items()},
        "per_sample": per_sample,
        # What the same rows would cost at that size, if none shared anything.
        "per_image_at": {
            shape: {
                label: sum(f * cost["full"] + s * cost["shallow"] for f, s in steps)
                for label, steps in rows.items()
            }
            for shape, cost in per_sample.items()
        },
    }
    for label, counts in counted.items():
        study.notes.append(f"GMACs per image, {label}: {sum(counts) / GIGA:.4g}")


PARTS: dict[str, Callable[[Study], None]] = {
    "frequency": _frequency,
    "similarity": _similarity,
    "timeline": _timeline,
    "difference": _difference,
    "macs": _macs,
}
# Images that each paints, of (adapters, seeds).
COUNTS: dict[str, Callable[[int, int], int]] = {
    "frequency": lambda adapters, seeds: (adapters + 1) * seeds,
    "similarity": lambda adapters, seeds: 1,
    "timeline": lambda adapters, seeds: 1,
    "difference": lambda adapters, seeds: 2,
    "macs": lambda adapters, seeds: 4,
}
