"""The backgrounds and objects this project draws itself, as SVG; `rng` places their parts."""

import numpy as np

# Colours are those the autoencoder knows from the people: it blurs others.
CANVAS = 272  # SVG units


def _fill(color: str, y: float = 0) -> str:
    return f'<rect y="{y}" width="{CANVAS}" height="{CANVAS - y}" fill="{color}"/>'


def _bamboo(rng: np.random.Generator) -> str:
    parts = [_fill("#DDF2B8")]
    offset = rng.uniform(-8, 8)
    for k in range(8):
        x, width = offset + 36 * k, rng.uniform(15, 19)
        parts.append(f'<rect x="{x}" width="{width}" height="{CANVAS}" fill="#4E9A3A"/>')
        parts.append(f'<rect x="{x + 2}" width="4" height="{CANVAS}" fill="#8CCB6B"/>')
        joint = f'<rect x="{x - 2}" width="{width + 4}" height="5" fill="#23591F"'
        start = rng.uniform(0, 52)
        parts += [f'{joint} y="{start + 52 * n}"/>' for n in range(6)]
    return "".join(parts)


def _night(rng: np.random.Generator) -> str:
    parts = [_fill("#141B4D")]
    for k in range(40):
        x, y = 34 * (k % 8) + rng.uniform(2, 32), 54 * (k // 8) + rng.uniform(2, 50)
        parts.append(f'<circle cx="{x}" cy="{y}" r="{rng.uniform(2.5, 5)}" fill="#FFF3A0"/>')
    x, y = rng.uniform(30, 46), rng.uniform(34, 50)
    parts.append(f'<circle cx="{x}" cy="{y}" r="22" fill="#FFE766"/>')
    parts.append(f'<circle cx="{x + 10}" cy="{y - 4}" r="18" fill="#141B4D"/>')
    return "".join(parts)


def _mountains(rng: np.random.Generator) -> str:
    """Blue peaks with snow under a yellow sky."""
    parts = [_fill("#FFE08A")]
    for k in (0, 2, 1, 3):  # the nearer ones last
        x, y = 12 + 84 * k + rng.uniform(-12, 12), rng.uniform(28, 60)
        slope, cap = 66 + rng.uniform(-6, 6), 62
        parts.append(
            f'<path d="M{x} {y} L{x - slope * 2} {CANVAS} H{x + slope * 2} z" fill="#5199E4"/>'
            f'<path d="M{x} {y} L{x - cap * slope * 2 / (CANVAS - y)} {y + cap} l22 -14 l16 14'
            f' L{x + cap * slope * 2 / (CANVAS - y)} {y + cap} z" fill="#FFFFFF"/>'
        )
    return "".join(parts)


def _seashore(rng: np.random.Generator) -> str:
    horizon, beach = rng.uniform(104, 120), rng.uniform(190, 204)
    sun, height = rng.uniform(28, 50), rng.uniform(38, 56)
    return (
        f'{_fill("#FFB3D1")}<circle cx="{sun}" cy="{height}" r="30" fill="#FFE766"/>'
        f"{_fill('#5199E4', horizon)}{_fill('#F4F4F4', beach - 10)}{_fill('#FFD166', beach)}"
    )


def _balloon(rng: np.random.Generator) -> str:
    x, y = 228 + rng.uniform(-6, 6), 64 + rng.uniform(-10, 10)
    return (
        f'<path d="M{x} {y + 40} Q{x + 10} {y + 110} {x - 4} 272" stroke="#333" fill="none"'
        f' stroke-width="4"/><path d="M{x - 8} {y + 48} h16 l-8 -14 z" fill="#B80F1B"/>'
        f'<ellipse cx="{x}" cy="{y}" rx="34" ry="42" fill="#E8121F"/>'
        f'<ellipse cx="{x - 12}" cy="{y - 16}" rx="8" ry="12" fill="#FF9C9C"/>'
    )


def _parrot(rng: np.random.Generator) -> str:
    """A macaw on the shoulder at the left."""
    x, y = 44 + rng.uniform(-5, 5), 132 + rng.uniform(-6, 6)
    return (
        f'<g transform="translate({x} {y})"><path d="M-12 44 L-24 104 L4 56 z" fill="#E8121F"/>'
        '<ellipse cy="24" rx="27" ry="44" fill="#4E9A3A"/>'
        '<ellipse cx="-13" cy="30" rx="14" ry="34" fill="#5199E4"/>'
        '<ellipse cx="13" cy="34" rx="9" ry="25" fill="#FFD166"/>'
        '<circle cx="4" cy="-26" r="24" fill="#E8121F"/>'
        '<circle cx="10" cy="-30" r="9" fill="#FFF"/><circle cx="12" cy="-30" r="4" fill="#111"/>'
        '<path d="M24 -36 q22 6 10 30 q-6 -14 -16 -12 z" fill="#2B2B2B"/></g>'
    )


def _mug(rng: np.random.Generator) -> str:
    """A steaming mug in the lower right corner."""
    x, y = 196 + rng.uniform(-6, 6), 200 + rng.uniform(-5, 5)
    return (
        f'<g transform="translate({x} {y})"><g fill="none" stroke="#FFF" stroke-width="7">'
        '<path d="M14 -12 q-12 -16 0 -30 t0 -28"/><path d="M42 -12 q-12 -16 0 -30 t0 -28"/></g>'
        '<path d="M56 12 h14 q14 22 -14 34" fill="none" stroke="#B80F1B" stroke-width="10"/>'
        '<path d="M-4 0 h64 v50 q0 16 -16 16 h-32 q-16 0 -16 -16 z" fill="#E8121F"/>'
        '<ellipse cx="28" cy="1" rx="32" ry="9" fill="#FF9C9C"/>'
        '<ellipse cx="28" cy="2" rx="25" ry="6" fill="#724133"/></g>'
    )


BACKGROUNDS = {
    "anime/background_1": _bamboo,
    "anime/background_2": _night,
    "reality/background_1": _mountains,
    "reality/background_2": _seashore,
}
OBJECTS = {
    "anime/object_2": _balloon,
    "reality/object_1": _parrot,
    "reality/object_2": _mug,
}
