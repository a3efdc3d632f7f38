"""The UNet as lists of modules, and where the feature cache cuts it.

On the way down every resnet (with its attention), resampler and the input convolution leave one
skip; on the way up every resnet takes the newest one left. So a cut is one number: how many skips
the shallow part keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..hooks import Foreign

__all__ = ["Atom", "Cut", "Topology", "Unit", "find_cut", "freeu_is_on", "what_reads_batch"]

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
FREEU_FIELDS = ("s1", "s2", "b1", "b2")


@dataclass(frozen=True)
class Atom:
    """One module of the way down; ``kind`` is "resnet", "attention" or "resample"."""

    name: str
    kind: str
    module: nn.Module
    leaves_skip: bool


@dataclass(frozen=True)
class Unit:
    """One resnet of the way up, with what follows it."""

    name: str
    resnet: nn.Module
    attention: nn.Module | None = None
    resample: nn.Module | None = None
    last_block: bool = False


@dataclass(frozen=True)
class Topology:
    """The way down in atoms, the way up in units, or why this UNet cannot be taken apart."""

    down: tuple[Atom, ...] = ()
    up: tuple[Unit, ...] = ()
    opaque: str | None = None

    @classmethod
    def of(cls, unet: nn.Module) -> Topology:
        opaque = _opaque(unet)
        if opaque is not None:
            return cls(opaque=opaque)
        down = [Atom("conv_in", "resample", unet.conv_in, True)]
        for i, block in enumerate(unet.down_blocks):
            for unit in _pairs(block, f"down_blocks.{i}"):
                down += _atoms(unit)
            if block.downsamplers is not None:
                name = f"down_blocks.{i}.downsamplers.0"
                down.append(Atom(name, "resample", block.downsamplers[0], True))
        up = []
        for i, block in enumerate(unet.up_blocks):
            pairs = _pairs(block, f"up_blocks.{i}")
            last, final = pairs[-1], i == len(unet.up_blocks) - 1
            resample = None if block.upsamplers is None else block.upsamplers[0]
            pairs[-1] = Unit(last.name, last.resnet, last.attention, resample, final)
            up += pairs
        return cls(tuple(down), tuple(up))

    def atoms_of(self, skips: int) -> int:
        """How many atoms of the way down leave the first ``skips`` skips."""
        ends = [i + 1 for i, atom in enumerate(self.down) if atom.leaves_skip]
        return ends[skips - 1]

    def untouched(self, adapted: Sequence[str]) -> int:
        """How many atoms run before the first one that holds a layer named in ``adapted``."""
        for i, atom in enumerate(self.down):
            inside = atom.name + "."
            if any(layer == atom.name or layer.startswith(inside) for layer in adapted):
                return i
        return len(self.down)

    def first_attention(self) -> int:
        """How many atoms run before the first one that reads text."""
        kinds = [atom.kind for atom in self.down]
        return kinds.index("attention") if "attention" in kinds else len(kinds)

    def last_unit_at(self, level: int) -> int:
        """The last up unit with attention at the size of the latents / 2**level; -1 for none.

        None, too, where that is the size of the middle block (SDXL): it ends there.
        """
        below = sum(".downsamplers." in atom.name for atom in self.down)
        last, level = -1, None if below == level else level
        for i, unit in enumerate(self.up):
            if unit.attention is not None and below == level:
                last = i
            below -= unit.resample is not None
        return last


def _atoms(unit: Unit) -> list[Atom]:
    """A pair's modules under their names in the UNet: blocks hold resnets and attentions apart."""
    block, _, index = unit.name.rpartition(".")
    atoms = [Atom(f"{block}.resnets.{index}", "resnet", unit.resnet, unit.attention is None)]
    if unit.attention is not None:
        atoms.append(Atom(f"{block}.attentions.{index}", "attention", unit.attention, True))
    return atoms


def _pairs(block: nn.Module, name: str) -> list[Unit]:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return [
        Unit(f"{name}.{i}", resnet, attention)
        for i, (resnet, attention) in enumerate(zip(block.resnets, attentions, strict=True))
    ]


def _opaque(unet: nn.Module) -> str | None:
    for kind, blocks in ((DOWN_BLOCKS, unet.down_blocks), (UP_BLOCKS, unet.up_blocks)):
        for block in blocks:
            if type(block).__name__ not in kind:
                return f"block type {type(block).__name__}"
            for samplers in ("downsamplers", "upsamplers"):
                if len(getattr(block, samplers, None) or []) > 1:
                    return f"{type(block).__name__} with several {samplers}"
    return None


def freeu_is_on(unet: nn.Module) -> bool:
    """FreeU lives in the up blocks' own forward, which we do not call."""
    return any(
        all(getattr(block, field, None) for field in FREEU_FIELDS) for block in unet.up_blocks
    )


def what_reads_batch(unet: nn.Module, foreign: Foreign | None) -> str | None:
    """What may take the batch for the pipeline's; None: nothing.

    ``foreign`` code, or attention processors, as PAG's do: diffusers' others treat every sample by
    itself, of anybody else's that is not known.
    """
    if foreign is not None and foreign.reads_batch:
        return foreign.reason
    kinds = {type(processor) for processor in unet.attn_processors.values()}
    own = "diffusers.models.attention_processor"
    reads = any(kind.__module__ != own or kind.__name__.startswith("PAG") for kind in kinds)
    return "attention processors that may read the batch" if reads else None


@dataclass(frozen=True)
class Cut:
    """The cache enters at up unit ``up``; the shallow part leaves ``skips`` skips."""

    skips: int
    up: int


def find_cut(unet: nn.Module, layer_id: int, block_id: int) -> Cut:
    """Where ``cache_layer_id`` and ``cache_block_id`` cut the UNet (cmlora spec §3.1).

    Raises:
        ValueError: The position lies outside the UNet; the message lists what is allowed.
    """
    allowed = _allowed_cuts(unet)
    if (layer_id, block_id) not in allowed:
        pairs = ", ".join(str(pair) for pair in allowed) or "none: this UNet is too shallow"
        raise ValueError(
            "(cache_layer_id, cache_block_id): expected one of "
            f"{pairs}; got ({layer_id}, {block_id})"
        )
    return allowed[layer_id, block_id]


def _allowed_cuts(unet: nn.Module) -> dict[tuple[int, int], Cut]:
    ups = list(reversed(unet.up_blocks))
    units = sum(len(block.resnets) for block in ups)
    cuts = {}
    for layer_id, block in enumerate(unet.down_blocks):
        for block_id in range(len(block.resnets) + 1):
            # A cut behind the last resnet of a block keeps the block's downsampler too.
            behind = block_id == len(block.resnets)
            level, resnet = (layer_id + 1, 0) if behind else (layer_id, block_id + 1)
            if level >= len(ups) or resnet >= len(ups[level].resnets):
                continue
            innermost = level == len(ups) - 1
            if innermost and not getattr(ups[level], "attentions", None):
                continue  # the released code records features at transformers only
            skips = sum(len(up.resnets) for up in ups[:level]) + resnet + 1
            cuts[layer_id, block_id] = Cut(skips, units - skips)
    return cuts
