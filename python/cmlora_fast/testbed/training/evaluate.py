"""The acceptance table: what the scorer finds with each LoRA and without any.

For every LoRA, one image per seed from its prompt, once with the LoRA and once with the bare base
model: found with it in at least 90 %, without it in at most 20 %.
`python -m cmlora_fast.testbed.training.evaluate [--only KEY ...]` prints the table and writes
data/acceptance.json. With `--choice` it takes the seeds that training choices were made on, and
writes nothing.
"""

import argparse
import json

import torch
from diffusers import StableDiffusionPipeline

import cmlora_fast as cf

from ..concepts import BY_KEY, GUIDANCE, NEGATIVE_PROMPT, Concept, prompt
from ..load import DATA, load_loras, load_pipeline
from ..scorer import Scorer

SEEDS = range(5000, 5016)  # reported
CHOICE_SEEDS = range(32)  # decided how long each LoRA was trained
STEPS = 20
WITH_AT_LEAST, WITHOUT_AT_MOST = 0.9, 0.2


def generate(pipe: StableDiffusionPipeline, text: str, seeds: range) -> list:
    """One image per seed; seed s gives the same start as a lone call with that seed."""
    return pipe(
        [text] * len(seeds),
        negative_prompt=[NEGATIVE_PROMPT] * len(seeds),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
    ).images


def share(scorer: Scorer, images: list, concept: Concept) -> float:
    """Share of the images in which the scorer is more than half sure of the concept."""
    scores = scorer.score(images, concept.style)
    return sum(score[concept.id] > 0.5 for score in scores) / len(images)


def found(concept: Concept, seeds: range) -> dict[str, float]:
    """{with, without}: the shares of images that show the concept."""
    pipe, scorer = cf.enable(load_pipeline()), Scorer()  # the same images, sooner
    text = prompt([concept.id], concept.style)
    without = share(scorer, generate(pipe, text, seeds), concept)
    load_loras(pipe, [concept.id], concept.style)
    return {"with": share(scorer, generate(pipe, text, seeds), concept), "without": without}


def passes(row: dict[str, float]) -> bool:
    return row["with"] >= WITH_AT_LEAST and row["without"] <= WITHOUT_AT_MOST


def _record(key: str, row: dict) -> None:
    """Write data/acceptance.json; rows of other LoRAs stay."""
    path = DATA / "acceptance.json"
    known = json.loads(path.read_text())["found"] if path.exists() else {}
    known[key] = row
    table = {
        "seeds": [SEEDS[0], SEEDS[-1]],
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "criterion": {"with_at_least": WITH_AT_LEAST, "without_at_most": WITHOUT_AT_MOST},
        "found": {k: known[k] for k in BY_KEY if k in known},
    }
    path.write_text(json.dumps(table, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=BY_KEY, help="keys to measure (default: all)")
    parser.add_argument("--choice", action="store_true", help="the seeds for training choices")
    args = parser.parse_args()
    print(f"{'LoRA':22} {'with':>7} {'without':>8}")
    for key in args.only:
        row = found(BY_KEY[key], CHOICE_SEEDS if args.choice else SEEDS)
        if not args.choice:
            _record(key, row)
        verdict = "ok" if passes(row) else "FAILS"
        print(f"{key:22} {row['with']:7.1%} {row['without']:8.1%}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
