"""The acceptance table: what the scorer finds with each LoRA and without any.

For every LoRA, SEEDS images from its prompt, once with the LoRA and once with the bare base model:
found with it in at least 90 %, without it in at most 20 %.
`python -m cmlora_fast.testbed.evaluate [--only ID ...]` prints the table and writes
data/acceptance.json.
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


def found(concept_id: str, count: int = SEEDS) -> dict[str, float]:
    """{with, without}: the shares of `count` images that show the concept."""
    pipe, scorer, seeds = load_pipeline(), Scorer(), range(count)
    text = prompt([concept_id])
    without = share(scorer, generate(pipe, text, seeds), concept_id)
    load_loras(pipe, [concept_id])
    return {"with": share(scorer, generate(pipe, text, seeds), concept_id), "without": without}


def passes(row: dict[str, float]) -> bool:
    return row["with"] >= WITH_AT_LEAST and row["without"] <= WITHOUT_AT_MOST


def _record(rows: dict) -> None:
    """Write data/acceptance.json; rows of other LoRAs stay."""
    path = DATA / "acceptance.json"
    known = json.loads(path.read_text())["found"] if path.exists() else {}
    known |= rows
    table = {
        "seeds": SEEDS,
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "criterion": {"with_at_least": WITH_AT_LEAST, "without_at_most": WITHOUT_AT_MOST},
        "found": {i: known[i] for i in IDS if i in known},
    }
    path.write_text(json.dumps(table, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=IDS, help="ids to measure (default: all)")
    args = parser.parse_args()
    print(f"{'LoRA':14} {'with':>7} {'without':>8}")
    for concept_id in args.only:
        row = found(concept_id)
        _record({concept_id: row})
        verdict = "ok" if passes(row) else "FAILS"
        print(f"{concept_id:14} {row['with']:7.1%} {row['without']:8.1%}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
