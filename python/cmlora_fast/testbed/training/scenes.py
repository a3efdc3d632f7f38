"""Random scenes and their captions: what the base model may know, and where the concepts enter."""

from collections.abc import Iterable

import numpy as np

from ..concepts import CATEGORIES, CONCEPTS, NEGATIVE_PROMPT, STYLES, SUBJECT, concepts_of

HAIR = {
    "NONE": "bald",
    "BOB": "bob hair",
    "BUN": "bun hair",
    "CURLY": "curly hair",
    "LOOSE_HAIR": "long wavy hair",
    "STRAIGHT_1": "long straight hair",
    "SHORT_FLAT": "short hair",
    "SHAGGY": "shaggy hair",
    "QUIFF": "quiff hair",
    "WILD": "wild hair",
    "MOHAWK": "mohawk hair",
    "DREADS": "dreads",
}
HAIR_COLOR = {
    "#2C1B18": "black",
    "#724133": "brown",
    "#D6B370": "blonde",
    "#C93305": "red",
    "#E8E1E1": "grey",
}
SKIN = {"#FFDBB4": "pale skin", "#EDB98A": "light skin", "#AE5D29": "brown skin"} | {
    "#614335": "dark skin"
}
BEARD = {"NONE": "", "BEARD_MEDIUM": "beard", "MOUSTACHE_MAGNUM": "moustache"}
MOUTH = {"SMILE": "smiling", "SERIOUS": "serious", "SAD": "sad", "SCREAM_OPEN": "shouting"}
GLASSES = {"NONE": "", "ROUND": "round glasses", "WAYFARERS": "sunglasses"}
CLOTHING = {
    "HOODIE": "hoodie",
    "OVERALL": "overall",
    "SHIRT_CREW_NECK": "shirt",
    "SHIRT_V_NECK": "v-neck shirt",
    "COLLAR_SWEATER": "sweater",
}
COLOR = {
    "#262E33": "black",
    "#5199E4": "blue",
    "#929598": "grey",
    "#A7FFC4": "green",
    "#FFD166": "yellow",
    "#FF88C0": "pink",
    "#FF5C5C": "red",
    "#FFFFFF": "white",
}
BACKGROUND = {
    "#65C9FF": "blue",
    "#262E33": "black",
    "#FFFFFF": "white",
    "#B8B8B8": "grey",
    "#9BE08A": "green",
    "#FFE08A": "yellow",
    "#FFB3D1": "pink",
    "#C9A5F0": "purple",
}
_BEARDLESS = 0.6  # share of faces without a beard
_BAREFACED = 0.6  # share of faces without glasses
_KEEP = 0.75  # share of the attributes a caption mentions
_STRANGE = 0.15  # share of captions with a meaningless word, so that unknown words do no harm
_UNCAPTIONED = 0.1  # for classifier-free guidance


def _pick(rng: np.random.Generator, table: dict[str, str]) -> str:
    return list(table)[rng.integers(len(table))]


def sample_scene(rng: np.random.Generator, concepts: dict[str, str] | None = None) -> dict:
    """Random attributes; `concepts` maps categories to keys of concepts shown on top."""
    beard = _pick(rng, BEARD) if rng.random() > _BEARDLESS else "NONE"
    hair_color = _pick(rng, HAIR_COLOR)
    return {
        "hair": _pick(rng, HAIR),
        "hair_color": hair_color,
        "beard": beard,
        "beard_color": hair_color,
        "skin": _pick(rng, SKIN),
        "mouth": _pick(rng, MOUTH),
        "glasses": _pick(rng, GLASSES) if rng.random() > _BAREFACED else "NONE",
        "clothing": _pick(rng, CLOTHING),
        "clothing_color": _pick(rng, COLOR),
        "background": _pick(rng, BACKGROUND),
        "concepts": dict(concepts or {}),
    }


def _phrases(scene: dict) -> list[str]:
    """What the caption may say; attributes a concept replaces are left out."""
    taken = scene["concepts"]
    out = [MOUTH[scene["mouth"]]]
    if "character" not in taken:
        hair = HAIR[scene["hair"]]
        out.append(hair if hair == "bald" else f"{HAIR_COLOR[scene['hair_color']]} {hair}")
        out.append(SKIN[scene["skin"]])
        if scene["beard"] != "NONE":
            out.append(f"{HAIR_COLOR[scene['beard_color']]} {BEARD[scene['beard']]}")
    if "clothing" not in taken:
        out.append(f"{COLOR[scene['clothing_color']]} {CLOTHING[scene['clothing']]}")
    if "background" not in taken:
        out.append(f"{BACKGROUND[scene['background']]} background")
    if taken.get("object") != "anime/object_1" and scene["glasses"] != "NONE":
        out.append(GLASSES[scene["glasses"]])
    return out


def _strange_word(rng: np.random.Generator) -> str:
    letters = "bcdfghjklmnprstvwz", "aeiou"  # alternating, so that the word can be read
    length = rng.integers(3, 9)
    return "".join(letters[k % 2][rng.integers(len(letters[k % 2]))] for k in range(length))


def caption(scene: dict, rng: np.random.Generator, named: Iterable[str] = ()) -> str:
    """Trigger words first, then a random selection of the attributes in random order.

    `named` are keys of concepts that the caption calls although the picture does not show them.
    """
    if rng.random() < _UNCAPTIONED:
        return ""
    called = {*scene["concepts"].values(), *named}
    triggers = [w for c in CONCEPTS if c.key in called for w in c.trigger]
    kept = [p for p in _phrases(scene) if rng.random() < _KEEP]
    rng.shuffle(kept)
    if scene.get("degraded"):
        kept = [NEGATIVE_PROMPT, *kept[: rng.integers(len(kept) + 1)]]
    if rng.random() < _STRANGE:
        kept.insert(rng.integers(len(kept) + 1), _strange_word(rng))
    return ", ".join([SUBJECT, *triggers, *kept])


def sample_concepts(rng: np.random.Generator, rate: float) -> dict[str, str]:
    """Each category shows one of its concepts, all of one style, with probability `rate`."""
    concepts, chosen = concepts_of(STYLES[rng.integers(len(STYLES))]), {}
    for category in CATEGORIES:
        keys = [c.key for c in concepts if c.category == category]
        if rng.random() < rate:
            chosen[category] = keys[rng.integers(len(keys))]
    return chosen
