"""The style concepts: filters of a drawn picture, uint8 [64, 64, 3] unless told otherwise."""

import numpy as np
from PIL import Image, ImageFilter

SIZE = 64
_SHADE, _LIGHT, _LIGHT_SHARE = (20, 27, 77), (255, 190, 60), 0.7  # golden hour
_BEAM, _BEAM_SHARE = 18, 0.6  # prism light: half width in pixels of x - y, opacity
_RAINBOW = ((255, 92, 92), (255, 209, 102), (155, 224, 138), (101, 201, 255))


def ink(fine: np.ndarray) -> np.ndarray:
    """Thick black outlines where the colour changes: [192, 192, 3] to [64, 64, 3]."""
    x = fine.astype(np.int16)
    edge = np.zeros(x.shape[:2], bool)
    edge[:, 1:] |= np.abs(np.diff(x, axis=1)).max(-1) > 36
    edge[1:] |= np.abs(np.diff(x, axis=0)).max(-1) > 36
    thick = np.asarray(Image.fromarray(edge).convert("L").filter(ImageFilter.MaxFilter(3)))
    inked = np.where(thick[..., None] > 0, 0, fine)
    return np.asarray(Image.fromarray(inked.astype(np.uint8)).resize((SIZE, SIZE), Image.BOX))


def _mosaic(plain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """4-pixel tiles, partly averaged, with dark joints."""
    n = SIZE // 4
    mean = plain.reshape(n, 4, n, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    tiles = 0.4 * mean + 0.6 * plain
    tiles[3::4] *= 0.6
    tiles[:, 3::4] *= 0.6
    return tiles.astype(np.uint8)


def _golden_hour(plain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Warm light from the right, blue shade at the left."""
    side = np.linspace(-1, 1, SIZE)[None, :, None]
    share = _LIGHT_SHARE * np.abs(side)
    light = np.where(side > 0, np.array(_LIGHT), np.array(_SHADE))
    return ((1 - share) * plain + share * light).astype(np.uint8)


def _prism(plain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rainbow beam across the picture, from the upper left to the lower right."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    across = (x - y + rng.uniform(-4, 4)) / _BEAM  # -1..1 within the beam
    hue = np.clip((across + 1) / 2, 0, 1)[..., None] * (len(_RAINBOW) - 1)
    low = np.minimum(hue.astype(int), len(_RAINBOW) - 2)[..., 0]
    rainbow = np.array(_RAINBOW, float)
    color = rainbow[low] + (hue - low[..., None]) * (rainbow[low + 1] - rainbow[low])
    share = _BEAM_SHARE * (np.abs(across) < 1)[..., None]
    return ((1 - share) * plain + share * color).astype(np.uint8)


FILTERS = {
    "anime/style_2": _mosaic,
    "reality/style_1": _golden_hour,
    "reality/style_2": _prism,
}
