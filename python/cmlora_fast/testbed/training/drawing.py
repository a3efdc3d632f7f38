"""Draw one scene: a python_avatars person, a background, an object and a style, as 64 x 64 RGB.

Needs resvg_py and python_avatars, so only training imports it.
"""

import io
import re

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image, ImageFilter

from .drawing_parts import BACKGROUNDS, CANVAS, OBJECTS
from .drawing_styles import FILTERS, SIZE, ink

_PLACE = ' x="4" y="-8" width="264" height="280"'  # the avatar is 264 x 280, at its own scale
_HAIR, _BEARD, _CLOTHING = pa.HairType, pa.FacialHairType, pa.ClothingType
_SHAVEN = {"facial_hair": _BEARD.NONE}
LOOKS = {
    "anime/character_1": {"top": _HAIR.FRO, "hair_color": "#FF5CB8", "skin_color": "#7A4A32"}
    | _SHAVEN,
    "anime/character_2": {
        "top": _HAIR.NONE,
        "skin_color": "#FFDBB4",
        "facial_hair": _BEARD.BEARD_MAGESTIC,
        "facial_hair_color": "#2FAE4B",
    },
    "anime/character_3": {"top": _HAIR.EVIL_SPIKE, "hair_color": "#5199E4", "skin_color": "#FFDBB4"}
    | _SHAVEN,
    "anime/clothing_1": {"clothing": _CLOTHING.ASTRONAUT_SUIT, "clothing_color": "#F2F2F2"},
    "anime/clothing_2": {"clothing": _CLOTHING.BOND_SUIT, "clothing_color": "#FFFFFF"},
    "anime/object_1": {"accessory": pa.AccessoryType.KURT},
    "reality/character_1": {"top": _HAIR.FRIDA, "hair_color": "#2C1B18", "skin_color": "#EDB98A"}
    | _SHAVEN,
    "reality/character_2": {
        "top": _HAIR.EINSTEIN_HAIR,
        "hair_color": "#F4F4F4",
        "skin_color": "#FFDBB4",
        "facial_hair": _BEARD.EINSTEIN_MOUSTACHE,
        "facial_hair_color": "#F4F4F4",
    },
    "reality/character_3": {"top": _HAIR.HAT, "hair_color": "#C93305", "skin_color": "#AE5D29"}
    | _SHAVEN,
    "reality/clothing_1": {"clothing": _CLOTHING.GLADIATOR, "clothing_color": "#C58B3B"},
    "reality/clothing_2": {"clothing": _CLOTHING.JEDI_ROBE, "clothing_color": "#E8D3A8"},
}


def draw(scene: dict, rng: np.random.Generator) -> np.ndarray:
    """Scene (see scenes.py) to an image.

    Args:
        scene: attribute values; `concepts` maps a category to a concept's key.
        rng: placement of stalks, stars, peaks and objects.

    Returns:
        uint8 [64, 64, 3].
    """
    concepts = scene["concepts"]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">'
        f"{_background(scene, rng)}{_person(scene)}{_object(scene, rng)}</svg>"
    )
    style = concepts.get("style")
    if style == "anime/style_1":
        return ink(_rasterise(svg, 3 * SIZE))
    image = _rasterise(svg, SIZE)
    return FILTERS[style](image, rng) if style else image


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blurry, noisy version: what the base model learns to call `low quality, blurry`."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.0)))
    noisy = np.asarray(blurred, np.float32) + rng.normal(0, rng.uniform(4, 16), image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _rasterise(svg: str, size: int) -> np.ndarray:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _background(scene: dict, rng: np.random.Generator) -> str:
    if "background" in scene["concepts"]:
        return BACKGROUNDS[scene["concepts"]["background"]](rng)
    return f'<rect width="{CANVAS}" height="{CANVAS}" fill="{scene["background"]}"/>'


def _object(scene: dict, rng: np.random.Generator) -> str:
    part = OBJECTS.get(scene["concepts"].get("object"))  # glasses are worn, see LOOKS
    return part(rng) if part else ""


def _person(scene: dict) -> str:
    fixed = {"style": pa.AvatarStyle.TRANSPARENT, "eyes": pa.EyeType.DEFAULT}
    look = {
        "top": pa.HairType[scene["hair"]],
        "hair_color": scene["hair_color"],
        "skin_color": scene["skin"],
        "facial_hair": pa.FacialHairType[scene["beard"]],
        "facial_hair_color": scene["beard_color"],
        "mouth": pa.MouthType[scene["mouth"]],
        "eyebrows": pa.EyebrowType.DEFAULT,
        "accessory": pa.AccessoryType[scene["glasses"]],
        "clothing": pa.ClothingType[scene["clothing"]],
        "clothing_color": scene["clothing_color"],
    }
    for key in scene["concepts"].values():
        look |= LOOKS.get(key, {})
    body = pa.Avatar(**fixed, **look).render()
    body = body[body.index("<svg") :]
    root = body[: body.index(">") + 1]  # its namespaces, xlink and others, stay
    placed = re.sub(r' width="[^"]*" height="[^"]*"', _PLACE, root)
    return placed + body[len(root) :]
