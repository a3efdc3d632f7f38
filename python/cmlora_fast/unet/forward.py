"""One denoising step over a row table: diffusers' own modules, in our order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .cache import FeatureCache
from .inputs import UNetInputs
from .layers import LayerState
from .rows import Chunk, Rows
from .topology import Atom, Topology, Unit

__all__ = ["Denoiser"]


@dataclass
class Denoiser:
    """A UNet taken apart. ``prefix`` atoms of the way down run before any adapter touches a row.

    Args:
        unet: The UNet whose modules run.
        topology: Its modules in running order.
        state: What its hooked layers read.
        prefix: Leading atoms of the way down that no adapter touches.
        shares_embedding: Whether the time embedding is the same for every adapter.
    """

    unet: nn.Module
    topology: Topology
    state: LayerState
    prefix: int
    shares_embedding: bool

    @classmethod
    def of(
        cls,
        unet: nn.Module,
        topology: Topology,
        state: LayerState,
        adapted: Sequence[str],
        own_text: bool = False,
    ) -> Denoiser:
        """``adapted``: layers that any adapter of the run touches; ``own_text``: prompts differ."""
        shares = not any("embedding" in name.split(".")[0] for name in adapted)
        if own_text and unet.config.addition_embed_type is not None:
            shares = False  # pooled prompts enter the time embedding
        prefix = topology.untouched(adapted) if shares else 0
        if own_text:
            prefix = min(prefix, topology.first_attention())
        return cls(unet, topology, state, prefix, shares)

    def __call__(self, inputs: UNetInputs, chunk: Chunk, cache: FeatureCache | None) -> Tensor:
        """Predictions (count, C, H, W) of the rows of ``chunk``.

        With a cache, only the chunk's deep rows run the deep part, and what it gives goes to the
        cache; every row runs the shallow part from there. Without, every row runs the whole UNet.
        """
        down, up = self.topology.down, self.topology.up
        stop = len(down) if cache is None else self.topology.atoms_of(cache.cut.skips)
        flow = self._begin(inputs, chunk, stop)
        if cache is None:
            flow.middle(self.unet.mid_block)
            flow.up(up)
        else:
            if chunk.deep_rows:
                deep = flow.deep()
                deep.down(down[stop:])
                deep.middle(self.unet.mid_block)
                deep.up(up[: cache.cut.up])
                cache.refresh(deep.hidden, flow.skips[-1].shape[1], chunk)
            flow.hidden = cache.joined(chunk, flow.pop_skip())
            flow.up(up[cache.cut.up :], joined=True)
        return self._finish(flow.hidden)

    def tapped(self, inputs: UNetInputs, chunk: Chunk, stop: int, whole: bool) -> Tensor | None:
        """As a call without cache, up to and including up unit ``stop``.

        ``whole`` False ends there; True goes on without a graph and returns the predictions.
        """
        up = self.topology.up
        flow = self._begin(inputs, chunk, len(self.topology.down))
        flow.middle(self.unet.mid_block)
        if stop >= 0:
            last = up[stop] if whole else replace(up[stop], resample=None)
            flow.up([*up[:stop], last])
        if not whole:
            return None
        with torch.no_grad():
            flow.hidden = flow.hidden.detach()
            flow.skips = [skip.detach() for skip in flow.skips]
            flow.up(up[stop + 1 :])
            return self._finish(flow.hidden)

    def _begin(self, inputs: UNetInputs, chunk: Chunk, stop: int) -> _Flow:
        """The way down to atom ``stop``; what adapters leave alone runs once for all of them."""
        prefix = min(self.prefix, stop) if chunk.whole and chunk.groups > 1 else 0
        if self.shares_embedding:
            embedding = inputs.time_embedding(self.unet)
        else:
            self.state.rows = chunk.rows
            embedding = inputs.of_chunk(chunk).time_embedding(self.unet)
        flow = _Flow(self.state, inputs, chunk, chunk.rows, inputs.sample, embedding)
        if prefix:
            flow.rows = chunk.base_rows(inputs.text)
            flow.down(self.topology.down[:prefix])
        flow.spread_over_rows()
        flow.down(self.topology.down[prefix:stop])
        return flow

    def _finish(self, hidden: Tensor) -> Tensor:
        unet = self.unet
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return unet.conv_out(hidden)


@dataclass
class _Flow:
    """A pass through the UNet: hidden states, skips not yet taken, and the rows they belong to.

    ``spread`` brings a tensor of the incoming batch to this flow's rows; ``above`` are the skips
    of the flow that this one forked from.
    """

    state: LayerState
    inputs: UNetInputs
    chunk: Chunk
    rows: Rows
    hidden: Tensor
    embedding: Tensor
    skips: list[Tensor] = field(default_factory=list)
    above: tuple[Tensor, ...] = ()
    spread: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.spread = self.spread or self.chunk.spread

    def spread_over_rows(self) -> None:
        """From one row per incoming sample to the rows of the chunk."""
        self.rows = self.chunk.rows
        self.hidden = self.spread(self.hidden)
        self.skips = [self.spread(skip) for skip in self.skips]
        self.embedding = self.spread(self.embedding)

    def deep(self) -> _Flow:
        """A fork over the deep rows alone."""
        chunk = self.chunk
        return _Flow(
            self.state,
            self.inputs,
            chunk,
            chunk.deep,
            chunk.take_deep(self.hidden),
            chunk.take_deep(self.embedding),
            above=tuple(self.skips),
            spread=lambda value: chunk.take_deep(chunk.spread(value)),
        )

    def down(self, atoms: Sequence[Atom]) -> None:
        self.state.rows = self.rows
        for atom in atoms:
            if atom.kind == "attention":
                self._attend(atom.module)
            elif atom.kind == "resnet":
                self.hidden = atom.module(self.hidden, self.embedding)
            else:
                self.hidden = atom.module(self.hidden)
            if atom.leaves_skip:
                self.skips.append(self.hidden)

    def middle(self, block: nn.Module | None) -> None:
        if block is not None:
            text = {}
            if getattr(block, "has_cross_attention", False):
                text["encoder_hidden_states"] = self.rows.text
                text["cross_attention_kwargs"] = self.inputs.attention_kwargs
            self.hidden = block(self.hidden, self.embedding, **text)
        if self.inputs.mid_residual is not None:
            self.hidden = self.hidden + self.spread(self.inputs.mid_residual)

    def pop_skip(self) -> Tensor:
        """The newest skip left, with its ControlNet residual."""
        skip = self.skips.pop()
        if self.inputs.down_residuals is not None:
            position = len(self.above) + len(self.skips)
            skip = skip + self.spread(self.inputs.down_residuals[position])
        return skip

    def up(self, units: Sequence[Unit], joined: bool = False) -> None:
        """Up units; ``joined``: the first one's skip is in ``hidden`` already."""
        self.state.rows = self.rows
        for unit in units:
            if not joined:
                self.hidden = torch.cat([self.hidden, self.pop_skip()], dim=1)
            joined = False
            self.hidden = unit.resnet(self.hidden, self.embedding)
            if unit.attention is not None:
                self._attend(unit.attention)
            if unit.resample is not None:
                self.hidden = unit.resample(self.hidden, self._size_above(unit))

    def _size_above(self, unit: Unit) -> torch.Size | None:
        """Where halving was not exact, an upsampler has to be told the size it came from."""
        if unit.last_block or not self.inputs.odd_size:
            return None
        return (*self.above, *self.skips)[-1].shape[2:]

    def _attend(self, attention: nn.Module) -> None:
        self.hidden = attention(
            self.hidden,
            encoder_hidden_states=self.rows.text,
            cross_attention_kwargs=self.inputs.attention_kwargs,
            return_dict=False,
        )[0]
