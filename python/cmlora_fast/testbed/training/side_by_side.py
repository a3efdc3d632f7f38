"""Two characters side by side: how often an image twice as wide shows one in each half.

`python -m cmlora_fast.testbed.training.side_by_side [--methods NAME ...] [--seeds FIRST COUNT]`
paints what is missing in the work folder's side_by_side.json and prints the table; README.md
discusses it.
"""

import argparse
import json

import numpy as np
import torch
from scipy.stats import binomtest

import cmlora_fast as cf

from ..concepts import BY_KEY, NEGATIVE_PROMPT, SUBJECT, prompt
from ..load import load_loras, load_pipeline
from ..scorer import Scorer
from .pools import WORK

PAIR = ("character_1", "character_2")
SIDE = 64
NONE = "no LoRA"
STEPS, GUIDANCE, SURE = 20, 4.0, 0.5
BATCH = 4
LEFT = np.tile(np.arange(2 * SIDE) < SIDE, (SIDE, 1))
MASKS = {PAIR[0]: LEFT, PAIR[1]: ~LEFT}
# The tokens whose maps vary most over the image, by position in each character's own prompt: hair
# and the comma behind it; the comma behind bald, and beard.
TOKENS = {PAIR[0]: (11, 12), PAIR[1]: (10, 13)}


def methods() -> dict[str, tuple]:
    """Name -> (prompt, method)."""
    both = prompt(PAIR)
    concepts = [cf.Concept(i, "person", ", ".join(BY_KEY[f"anime/{i}"].trigger)) for i in PAIR]
    scene = f"{SUBJECT} and a person"
    rows = [cf.Row(None, SUBJECT, NEGATIVE_PROMPT, (), ((), ()))]
    for c, i in enumerate(PAIR):
        groups = [(), ()]
        groups[c] = TOKENS[i]
        rows.append(cf.Row(i, prompt([i]), NEGATIVE_PROMPT, TOKENS[i], groups))
    by_hand = cf.CLoRA(
        rows=rows,
        maps_from="cond",
        step_size=60.0,
        mask_threshold_alpha=0.5,
        iterative_steps=(0, 3, 6),
        iterative_steps_steps=10,
    )
    given = cf.CLoRA(rows=rows, masks=MASKS, latent_update=False)
    return {
        NONE: (both, None),
        "merge": (both, cf.Merge()),
        "composite": (both, cf.Composite()),
        "clora": (scene, cf.CLoRA(concepts=concepts)),
        "clora, tokens by hand": (SUBJECT, by_hand),
        "composite, masks given": (both, cf.Composite(masks=MASKS)),
        "clora, masks given": (SUBJECT, given),
    }


def paint(pipe, text: str, method, seeds: list[int]) -> list:
    """One image, 64 x 128, per seed."""
    with cf.accelerate(pipe, method):
        return pipe(
            text,
            negative_prompt=NEGATIVE_PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=SIDE,
            width=2 * SIDE,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images


def shows(scorer: Scorer, image) -> list[bool]:
    """[one character in each half, the first anywhere, the second anywhere]."""
    halves = [image.crop((x, 0, x + SIDE, SIDE)) for x in (0, SIDE)]
    left, right = ([s[i] > SURE for i in PAIR] for s in scorer.score(halves))
    both = (left[0] and right[1]) or (left[1] and right[0])
    return [both, left[0] or right[0], left[1] or right[1]]


def table(found: dict[str, dict[str, list[bool]]]) -> str:
    """Counts and 95 % Wilson intervals of both, counts of each."""
    lines = [f"| method | images | both | 95 % interval | {' | '.join(PAIR)} |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, images in found.items():
        both, *each = (sum(column) for column in zip(*images.values(), strict=True))
        low, high = binomtest(both, len(images)).proportion_ci(method="wilson")
        cells = [name, len(images), both, f"{low:.0%} to {high:.0%}", *each]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", help="names in the table (default: all)")
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 32), metavar=("FIRST", "COUNT"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe, scorer, path = load_pipeline(), Scorer(), WORK / "side_by_side.json"
    load_loras(pipe, list(PAIR))
    found = json.loads(path.read_text()) if path.exists() else {}
    first, count = args.seeds
    for name, (text, method) in methods().items():
        if args.methods and name not in args.methods:
            continue
        pipe.set_adapters(list(PAIR), [float(name != NONE)] * len(PAIR))
        done = found.setdefault(name, {})
        missing = [seed for seed in range(first, first + count) if str(seed) not in done]
        for start in range(0, len(missing), BATCH):
            seeds = missing[start : start + BATCH]
            for seed, image in zip(seeds, paint(pipe, text, method, seeds), strict=True):
                done[str(seed)] = shows(scorer, image)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
    print(table({name: images for name, images in found.items() if images}))


if __name__ == "__main__":
    main()
