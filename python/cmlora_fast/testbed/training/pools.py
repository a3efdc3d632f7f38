"""Pools of rendered scenes, drawn once with a seed and kept in the work folder."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from ..concepts import Concept
from .scenes import sample_concepts, sample_scene

WORK = Path(os.environ.get("CMLORA_TESTBED_WORK", Path(__file__).parents[4] / ".testbed"))
_CHUNK = 500
_DEGRADED = 0.05  # share of images the base model learns to call low quality
_ODD = 0.3  # share of scorer scenes with the characters' colours on other people
_ODD_COLOURS = ("#FF5CB8", "#2FAE4B", "#F59797", "#7FBF5A", "#5199E4", "#F4F4F4")
_SEEDS = {"vae": 1_000_000, "base": 2_000_000, "scorer": 3_000_000, "scorer_val": 4_000_000} | {
    "decoder": 5_000_000
}


def render_pool(name: str, count: int, rate: float) -> tuple[np.ndarray, list[dict]]:
    """`count` images with their scenes; every category shows a concept with probability `rate`.

    Returns:
        uint8 [count, 64, 64, 3] and the scenes.
    """
    scene = partial(_random_scene, rate=rate, odd_colours=name.startswith("scorer"))
    return _pool(name, count, _SEEDS[name], scene)


def render_concept_pool(concept: Concept, count: int, seed: int):
    """`count` images that all show one concept and nothing else the base has not seen."""
    scene = partial(_concept_scene, concepts={concept.category: concept.key})
    return _pool(concept.key, count, seed, scene)


def _random_scene(rng: np.random.Generator, rate: float, odd_colours: bool) -> dict:
    scene = sample_scene(rng, sample_concepts(rng, rate) if rate else None)
    scene["degraded"] = bool(rng.random() < _DEGRADED)
    if odd_colours and rng.random() < _ODD:
        scene["hair_color"], scene["beard_color"] = rng.choice(_ODD_COLOURS, 2).tolist()
    return scene


def _concept_scene(rng: np.random.Generator, concepts: dict[str, str]) -> dict:
    return sample_scene(rng, concepts)


def _pool(name: str, count: int, seed: int, scene_of):
    path = WORK / "pools" / f"{name}_{count}"
    if not path.with_suffix(".json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes = [min(_CHUNK, count - at) for at in range(0, count, _CHUNK)]
        with ProcessPoolExecutor(2) as workers:
            done = workers.map(
                partial(_render_chunk, scene_of=scene_of), range(seed, seed + len(sizes)), sizes
            )
            images, scenes = zip(*done, strict=True)
        np.save(path.with_suffix(".npy"), np.concatenate(images))
        path.with_suffix(".json").write_text(json.dumps([s for chunk in scenes for s in chunk]))
    return np.load(path.with_suffix(".npy")), json.loads(path.with_suffix(".json").read_text())


def _render_chunk(seed: int, count: int, scene_of) -> tuple[np.ndarray, list[dict]]:
    from .drawing import degrade, draw  # drawing packages are needed for rendering only

    rng = np.random.default_rng(seed)
    images, scenes = [], []
    for _ in range(count):
        scene = scene_of(rng)
        image = draw(scene, rng)
        images.append(degrade(image, rng) if scene.get("degraded") else image)
        scenes.append(scene)
    return np.stack(images), scenes
