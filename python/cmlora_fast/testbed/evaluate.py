"""The acceptance table: what the scorer finds with each LoRA and without any.

For every LoRA, SEEDS images from its prompt, once with the LoRA and once with the bare base model:
found with it in at least 90 %, without it in at most 20 %.
`python -m cmlora_fast.testbed.evaluate` prints the table and writes data/acceptance.json.
"""

import argparse
import json

import torch
from diffusers import StableDiffusionPipeline

from .concepts import IDS, NEGATIVE_PROMPT, prompt
from .load import DATA, load_loras, load_pipeline
from .scorer import Scorer

SEEDS = 32
STEPS, GUIDANCE = 20, 4.0
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


def share(scorer: Scorer, images: list, concept_id: str) -> float:
    """Share of the images in which the scorer is more than half sure of the concept."""
    return sum(score[concept_id] > 0.5 for score in scorer.score(images)) / len(images)


def acceptance(count: int = SEEDS) -> dict:
    """Rows id -> {with, without}: shares of `count` images that show the concept."""
    pipe, scorer, seeds = load_pipeline(), Scorer(), range(count)
    bare = {i: share(scorer, generate(pipe, prompt([i]), seeds), i) for i in IDS}
    load_loras(pipe)
    rows = {}
    for i in IDS:
        pipe.set_adapters([i])
        rows[i] = {"with": share(scorer, generate(pipe, prompt([i]), seeds), i), "without": bare[i]}
    return {
        "seeds": count,
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "scheduler": type(pipe.scheduler).__name__,
        "criterion": {"with_at_least": WITH_AT_LEAST, "without_at_most": WITHOUT_AT_MOST},
        "found": rows,
    }


def passes(row: dict[str, float]) -> bool:
    return row["with"] >= WITH_AT_LEAST and row["without"] <= WITHOUT_AT_MOST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    torch.set_num_threads(2)
    table = acceptance(args.seeds)
    print(f"{'LoRA':14} {'with':>7} {'without':>8}")
    for concept_id, row in table["found"].items():
        verdict = "ok" if passes(row) else "FAILS"
        print(f"{concept_id:14} {row['with']:7.1%} {row['without']:8.1%}  {verdict}")
    if not args.dry:
        (DATA / "acceptance.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
