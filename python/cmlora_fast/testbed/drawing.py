"""Draw one scene: a python_avatars person, a background, an object and a style, as 64 x 64 RGB.

Needs resvg_py and python_avatars, so only training imports it.
"""

import io
import re

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image, ImageFilter

SIZE = 64
_CANVAS = 272  # SVG units; the avatar is 264 x 280 and keeps its own scale
_PLACE = ' x="4" y="-8" width="264" height="280"'


def draw(scene: dict, rng: np.random.Generator) -> np.ndarray:
    """Scene (see scenes.py) to an image.

    Args:
        scene: attribute values; `concepts` maps a category to a concept id.
        rng: placement of stalks, stars and the balloon.

    Returns:
        uint8 [64, 64, 3].
    """
    concepts = scene["concepts"]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_CANVAS} {_CANVAS}">'
        f"{_background(scene, rng)}{_person(scene)}{_object(concepts.get('object'), rng)}</svg>"
    )
    style = concepts.get("style")
    if style == "style_1":
        return _ink(_rasterise(svg, 3 * SIZE))
    image = _rasterise(svg, SIZE)
    return _mosaic(image) if style == "style_2" else image


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A blurry, noisy version: what the base model learns to call `low quality, blurry`."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 2.0)))
    noisy = np.asarray(blurred, np.float32) + rng.normal(0, rng.uniform(4, 16), image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _rasterise(svg: str, size: int) -> np.ndarray:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def _person(scene: dict) -> str:
    concepts = scene["concepts"]
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
    if concepts.get("character") == "character_1":
        look |= {"top": pa.HairType.FRO, "hair_color": "#FF5CB8", "skin_color": "#7A4A32"}
        look |= {"facial_hair": pa.FacialHairType.NONE}
    if concepts.get("character") == "character_2":
        look |= {"top": pa.HairType.NONE, "skin_color": "#FFDBB4"}
        look |= {"facial_hair": pa.FacialHairType.BEARD_MAGESTIC, "facial_hair_color": "#2FAE4B"}
    if concepts.get("clothing") == "clothing_1":
        look |= {"clothing": pa.ClothingType.ASTRONAUT_SUIT, "clothing_color": "#F2F2F2"}
    if concepts.get("clothing") == "clothing_2":
        look |= {"clothing": pa.ClothingType.BOND_SUIT, "clothing_color": "#FFFFFF"}
    if concepts.get("object") == "object_1":
        look |= {"accessory": pa.AccessoryType.KURT}
    body = pa.Avatar(**fixed, **look).render()
    body = body[body.index("<svg") :]
    root = body[: body.index(">") + 1]  # its namespaces, xlink and others, stay
    placed = re.sub(r' width="[^"]*" height="[^"]*"', _PLACE, root)
    return placed + body[len(root) :]


def _background(scene: dict, rng: np.random.Generator) -> str:
    kind = scene["concepts"].get("background")
    if kind == "background_1":
        return _bamboo(rng)
    if kind == "background_2":
        return _night(rng)
    return f'<rect width="{_CANVAS}" height="{_CANVAS}" fill="{scene["background"]}"/>'


def _bamboo(rng: np.random.Generator) -> str:
    parts = [f'<rect width="{_CANVAS}" height="{_CANVAS}" fill="#DDF2B8"/>']
    offset = rng.uniform(-8, 8)
    for k in range(8):
        x, width = offset + 36 * k, rng.uniform(15, 19)
        parts.append(f'<rect x="{x}" width="{width}" height="{_CANVAS}" fill="#4E9A3A"/>')
        parts.append(f'<rect x="{x + 2}" width="4" height="{_CANVAS}" fill="#8CCB6B"/>')
        joint = f'<rect x="{x - 2}" width="{width + 4}" height="5" fill="#23591F"'
        start = rng.uniform(0, 52)
        parts += [f'{joint} y="{start + 52 * n}"/>' for n in range(6)]
    return "".join(parts)


def _night(rng: np.random.Generator) -> str:
    parts = [f'<rect width="{_CANVAS}" height="{_CANVAS}" fill="#141B4D"/>']
    for k in range(40):
        x, y = 34 * (k % 8) + rng.uniform(2, 32), 54 * (k // 8) + rng.uniform(2, 50)
        parts.append(f'<circle cx="{x}" cy="{y}" r="{rng.uniform(2.5, 5)}" fill="#FFF3A0"/>')
    x, y = rng.uniform(30, 46), rng.uniform(34, 50)
    parts.append(f'<circle cx="{x}" cy="{y}" r="22" fill="#FFE766"/>')
    parts.append(f'<circle cx="{x + 10}" cy="{y - 4}" r="18" fill="#141B4D"/>')
    return "".join(parts)


def _object(kind: str | None, rng: np.random.Generator) -> str:
    if kind != "object_2":
        return ""
    x, y = 228 + rng.uniform(-6, 6), 64 + rng.uniform(-10, 10)
    return (
        f'<path d="M{x} {y + 40} Q{x + 10} {y + 110} {x - 4} 272" stroke="#333" fill="none"'
        f' stroke-width="4"/><path d="M{x - 8} {y + 48} h16 l-8 -14 z" fill="#B80F1B"/>'
        f'<ellipse cx="{x}" cy="{y}" rx="34" ry="42" fill="#E8121F"/>'
        f'<ellipse cx="{x - 12}" cy="{y - 16}" rx="8" ry="12" fill="#FF9C9C"/>'
    )


def _ink(image: np.ndarray) -> np.ndarray:
    """Thick black outlines where the colour changes: [192, 192, 3] to [64, 64, 3]."""
    x = image.astype(np.int16)
    edge = np.zeros(x.shape[:2], bool)
    edge[:, 1:] |= np.abs(np.diff(x, axis=1)).max(-1) > 36
    edge[1:] |= np.abs(np.diff(x, axis=0)).max(-1) > 36
    thick = np.asarray(Image.fromarray(edge).convert("L").filter(ImageFilter.MaxFilter(3)))
    inked = np.where(thick[..., None] > 0, 0, image)
    return np.asarray(Image.fromarray(inked.astype(np.uint8)).resize((SIZE, SIZE), Image.BOX))


def _mosaic(image: np.ndarray) -> np.ndarray:
    """4-pixel tiles, partly averaged, with dark joints: [64, 64, 3] to [64, 64, 3]."""
    n = SIZE // 4
    mean = image.reshape(n, 4, n, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    tiles = 0.4 * mean + 0.6 * image
    tiles[3::4] *= 0.6
    tiles[:, 3::4] *= 0.6
    return tiles.astype(np.uint8)
