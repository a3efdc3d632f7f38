"""The ten concepts the LoRAs teach: two in each ComposLoRA category.

The table is the single source of ids, names and trigger words; `lora_info` is the same table in the
ComposLoRA file format. It needs neither torch nor the drawing packages.
"""

from dataclasses import dataclass

CATEGORIES = ("character", "clothing", "style", "background", "object")
SUBJECT = "a portrait of a person"
NEGATIVE_PROMPT = "low quality, blurry"
_URL = "https://github.com/ibonn/python_avatars"  # source of the art all of them are drawn from


@dataclass(frozen=True)
class Concept:
    """One LoRA: its id `<category>_<n>`, a readable name and the words that call it."""

    id: str
    name: str
    trigger: tuple[str, ...]

    @property
    def category(self) -> str:
        return self.id.rsplit("_", 1)[0]


CONCEPTS = (
    Concept("character_1", "Rosalie", ("rosalie", "pink afro hair", "dark skin")),
    Concept("character_2", "Mossbeard", ("mossbeard", "bald", "big green beard")),
    Concept("clothing_1", "Astronaut suit", ("astronaut suit",)),
    Concept("clothing_2", "Tuxedo", ("tuxedo", "bow tie")),
    Concept("style_1", "Comic ink", ("comic ink style", "thick black outlines")),
    Concept("style_2", "Tile mosaic", ("mosaic style", "square tiles")),
    Concept("background_1", "Bamboo", ("bamboolight", "bamboo stalks")),
    Concept("background_2", "Starry night", ("night sky", "stars and moon")),
    Concept("object_1", "Kurt shades", ("kurt shades", "big white frame")),
    Concept("object_2", "Red balloon", ("red balloon",)),
)
IDS = tuple(concept.id for concept in CONCEPTS)
BY_ID = {concept.id: concept for concept in CONCEPTS}


def prompt(ids: list[str] | tuple[str, ...]) -> str:
    """The prompt that calls the given concepts, e.g. `a portrait of a person, tuxedo, bow tie`."""
    unknown = [i for i in ids if i not in BY_ID]
    if unknown:
        raise ValueError(f"prompt: expected ids among {', '.join(IDS)}; got {unknown}")
    return ", ".join([SUBJECT, *(word for i in ids for word in BY_ID[i].trigger)])


def lora_info() -> dict[str, list[dict]]:
    """The concepts in the format of ComposLoRA's lora_info.json."""
    info: dict[str, list[dict]] = {category: [] for category in CATEGORIES}
    for c in CONCEPTS:
        info[c.category].append(
            {"id": c.id, "name": c.name, "trigger": list(c.trigger), "url": _URL}
        )
    return info
