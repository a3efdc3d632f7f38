"""The 22 concepts the LoRAs teach: eleven in each of ComposLoRA's two styles.

The table is the single source of ids, names and trigger words; `lora_info` is the same table in the
ComposLoRA file format. As there, both styles have the same ids, each its own concepts behind them.
It needs neither torch nor the drawing packages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STYLES = ("anime", "reality")
CATEGORIES = ("character", "clothing", "style", "background", "object")
SUBJECT = "a portrait of a person"
NEGATIVE_PROMPT = "low quality, blurry"
GUIDANCE = 7.5  # diffusers' default; decided on choice seeds, with the strength of the LoRAs
_AVATARS = "https://github.com/ibonn/python_avatars"  # source of the people in all pictures


@dataclass(frozen=True)
class Concept:
    """One LoRA: its style, its id `<category>_<n>`, a readable name and the words that call it."""

    style: str
    id: str
    name: str
    trigger: tuple[str, ...]

    @property
    def category(self) -> str:
        return self.id.rsplit("_", 1)[0]

    @property
    def key(self) -> str:
        """`<style>/<id>`, unique among all concepts; the LoRA file's path below `lora/`."""
        return f"{self.style}/{self.id}"


CONCEPTS = (
    Concept("anime", "character_1", "Rosalie", ("rosalie", "pink afro hair", "dark skin")),
    Concept("anime", "character_2", "Mossbeard", ("mossbeard", "bald", "big green beard")),
    Concept("anime", "character_3", "Azurin", ("azurin", "blue spiky hair", "pale skin")),
    Concept("anime", "clothing_1", "Astronaut suit", ("astronaut suit",)),
    Concept("anime", "clothing_2", "Tuxedo", ("tuxedo", "bow tie")),
    Concept("anime", "style_1", "Comic ink", ("comic ink style", "thick black outlines")),
    Concept("anime", "style_2", "Tile mosaic", ("mosaic style", "square tiles")),
    Concept("anime", "background_1", "Bamboo", ("bamboolight", "bamboo stalks")),
    Concept("anime", "background_2", "Starry night", ("night sky", "stars and moon")),
    Concept("anime", "object_1", "Kurt shades", ("kurt shades", "big white frame")),
    Concept("anime", "object_2", "Red balloon", ("red balloon",)),
    Concept("reality", "character_1", "Fiora", ("fiora", "flower crown")),
    Concept("reality", "character_2", "Professor", ("professor", "wild white hair", "moustache")),
    Concept("reality", "character_3", "Wanda", ("wanda", "wide dark hat")),
    Concept("reality", "clothing_1", "Gladiator armour", ("gladiator armour",)),
    Concept("reality", "clothing_2", "Monk robe", ("monk robe", "dark cloak")),
    Concept("reality", "style_1", "Golden hour", ("golden hour", "warm side light")),
    Concept("reality", "style_2", "Prism light", ("prism light", "rainbow beam")),
    Concept("reality", "background_1", "Mountains", ("mountains", "snowy peaks")),
    Concept("reality", "background_2", "Seashore", ("seashore", "sun and sand")),
    Concept("reality", "object_1", "Parrot", ("parrot on the shoulder",)),
    Concept("reality", "object_2", "Coffee mug", ("steaming mug",)),
)
IDS = tuple(c.id for c in CONCEPTS if c.style == STYLES[0])
BY_KEY = {c.key: c for c in CONCEPTS}


def concepts_of(style: str) -> tuple[Concept, ...]:
    """The eleven concepts of one style, in the order of IDS."""
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}; got {style!r}")
    return tuple(c for c in CONCEPTS if c.style == style)


def prompt(ids: Sequence[str], style: str = "anime") -> str:
    """The prompt that calls the given concepts, e.g. `a portrait of a person, tuxedo, bow tie`."""
    known = {c.id: c for c in concepts_of(style)}
    unknown = [i for i in ids if i not in known]
    if unknown:
        raise ValueError(f"prompt: expected ids among {', '.join(IDS)}; got {unknown}")
    return ", ".join([SUBJECT, *(word for i in ids for word in known[i].trigger)])


def lora_info(style: str = "anime") -> dict[str, list[dict]]:
    """One style's concepts in the format of ComposLoRA's `{style}_lora_info.json`."""
    info: dict[str, list[dict]] = {category: [] for category in CATEGORIES}
    for c in concepts_of(style):
        info[c.category].append(
            {"id": c.id, "name": c.name, "trigger": list(c.trigger), "url": _AVATARS}
        )
    return info
