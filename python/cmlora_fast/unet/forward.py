"""One denoising step over a row table: diffusers' own modules, in our order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from .cache import FeatureCache
from .fast_blocks import norm_silu, takes_norm
from .inputs import UNetInputs
from .rows import Rows
from .state import LayerState
from .topology import Atom, Topology, Unit

__all__ = ["Denoiser", "Shared"]


@dataclass(frozen=True)
class Shared:
    """One row per incoming sample, before rows differ.

    Args:
        hidden: The sample after ``atoms`` atoms of the way down.
        embedding: Of the time step; None if every row has its own.
        skips: What those atoms left.
        atoms: How many ran.
        alike: Rows of one subset that lie so far apart are the same until text is read; None if
            none are.
    """

    hidden: Tensor
    embedding: Tensor | None
    skips: tuple[Tensor, ...] = ()
    atoms: int = 0
    alike: int | None = None


@dataclass
class Denoiser:
    """A UNet taken apart. ``prefix`` atoms of the way down run before any adapter touches a row.

    Args:
        unet: The UNet whose modules run.
        topology: Its modules in running order.
        state: What its hooked layers read.
        prefix: Leading atoms of the way down that no adapter touches.
        shares_embedding: Whether the time embedding is the same for every adapter.
        passes_embedding: Whether adapters touch it that no row carries.
    """

    unet: nn.Module
    topology: Topology
    state: LayerState
    prefix: int
    shares_embedding: bool
    passes_embedding: bool

    @classmethod
    def of(
        cls,
        unet: nn.Module,
        topology: Topology,
        state: LayerState,
        adapted: Sequence[str],
        active: Iterable[str],
        own_text: bool = False,
    ) -> Denoiser:
        """``adapted``: layers that any adapter of the run touches; ``active``: that any active one
        does; ``own_text``: prompts differ.
        """
        shares = not _in_embedding(adapted)
        passes = _in_embedding(active)
        if own_text and unet.config.addition_embed_type is not None:
            shares = False  # pooled prompts enter the time embedding
        prefix = topology.untouched(adapted) if shares else 0
        if own_text:
            prefix = min(prefix, topology.first_attention())
        return cls(unet, topology, state, prefix, shares, passes)

    def shared(self, inputs: UNetInputs, cache: FeatureCache | None) -> Shared:
        """What all rows of a step have in common, computed once per incoming sample."""
        rows = Rows.of_batch(inputs.text, inputs.text_rows)
        start = self._unshared(inputs, rows)
        flow = _Flow(self.state, inputs, rows, start.hidden, start.embedding)
        atoms = min(self.prefix, self._stop(cache))
        alike = flow.down(self.topology.down[:atoms], start.alike)
        return Shared(flow.hidden, start.embedding, tuple(flow.skips), atoms, alike)

    def _unshared(self, inputs: UNetInputs, rows: Rows) -> Shared:
        sample = inputs.sample
        if self.state.kit.takes(sample):  # images then stay so, and their tokens are views
            sample = sample.contiguous(memory_format=torch.channels_last)
        if not self.shares_embedding:
            return Shared(sample, None)
        self.state.rows = rows if self.passes_embedding else None
        embedding = inputs.time_embedding(self.unet)
        same = len(embedding) == 1 and self.state.kit.host and self.state.kit.takes(sample)
        return Shared(sample, embedding, alike=inputs.period() if same else None)

    def _stop(self, cache: FeatureCache | None) -> int:
        """How many atoms of the way down every row runs."""
        return len(self.topology.down) if cache is None else self.topology.atoms_of(cache.cut.skips)

    def __call__(
        self,
        inputs: UNetInputs,
        rows: Rows,
        cache: FeatureCache | None,
        shared: Shared | None = None,
    ) -> Tensor:
        """Predictions (count, C, H, W) of ``rows``.

        With a cache, only the deep ones run the deep part, and what it gives goes to the cache;
        every row runs the shallow part from there. Without, every row runs the whole UNet.
        """
        down, up = self.topology.down, self.topology.up
        flow = self._begin(inputs, rows, cache, shared)
        if cache is None:
            flow.middle(self.unet.mid_block)
            flow.up(up)
        else:
            if len(rows.table.deep):
                deep = flow.deep()
                deep.down(down[self._stop(cache) :])
                deep.middle(self.unet.mid_block)
                deep.up(up[: cache.cut.up])
                cache.refresh(deep.hidden, flow.skips[-1].shape[1], rows.deep)
            flow.hidden = cache.joined(rows, flow.pop_skip())
            flow.up(up[cache.cut.up :], joined=True)
        return self._finish(flow.hidden)

    def tapped(self, inputs: UNetInputs, rows: Rows, stop: int, whole: bool) -> Tensor | None:
        """As a call without cache, up to and including up unit ``stop``.

        ``whole`` False ends there; True goes on without a graph and returns the predictions.
        """
        up = self.topology.up
        flow = self._begin(inputs, rows, None, None)
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

    def _begin(
        self, inputs: UNetInputs, rows: Rows, cache: FeatureCache | None, shared: Shared | None
    ) -> _Flow:
        """The way down as far as every row runs it."""
        if shared is None:
            whole = rows.table.whole
            shared = self.shared(inputs, cache) if whole else self._unshared(inputs, rows)
        self.state.rows, embedding = rows, shared.embedding
        if embedding is None:
            embedding = inputs.of_rows(rows).time_embedding(self.unet)
        else:
            embedding = rows.spread(embedding, inputs.batch)
        left = rows.spread([shared.hidden, *shared.skips], inputs.batch)
        # By slices: torch 2.11's compiler takes what is unpacked by a star for a tuple.
        flow = _Flow(self.state, inputs, rows, left[0], embedding, list(left[1:]))
        flow.down(self.topology.down[shared.atoms : self._stop(cache)], shared.alike)
        return flow

    def _finish(self, hidden: Tensor) -> Tensor:
        unet, norm = self.unet, self.unet.conv_norm_out
        if norm and self.state.kit.takes(hidden) and takes_norm(norm, unet.conv_act):
            hidden = norm_silu(norm, hidden.contiguous(memory_format=torch.channels_last))
        elif norm:
            hidden = unet.conv_act(norm(hidden))
        if self.state.joins is not None:
            self.state.joins.forget()
        return unet.conv_out(hidden).contiguous()


def _in_embedding(layers: Iterable[str]) -> bool:
    return any("embedding" in name.split(".")[0] for name in layers)


@dataclass
class _Flow:
    """A pass through the UNet: hidden states, skips not yet taken, and the rows they belong to.

    ``above`` are the skips of the flow that this one forked from.
    """

    state: LayerState
    inputs: UNetInputs
    rows: Rows
    hidden: Tensor
    embedding: Tensor
    skips: list[Tensor] = field(default_factory=list)
    above: tuple[Tensor, ...] = ()

    def spread(self, value: Tensor) -> Tensor:
        """A tensor of the incoming batch, for the rows of this flow."""
        return self.rows.spread(value, self.inputs.batch)

    def deep(self) -> _Flow:
        """A fork over the deep rows alone."""
        rows, above = self.rows, tuple(self.skips)
        hidden, embedding = rows.take_deep([self.hidden, self.embedding])
        return _Flow(self.state, self.inputs, rows.deep, hidden, embedding, above=above)

    def down(self, atoms: Sequence[Atom], alike: int | None = None) -> int | None:
        """``alike`` as in ``Shared``, before these atoms and, returned, behind them."""
        self.state.rows = self.rows
        for atom in atoms:
            if atom.kind == "attention":
                self._attend(atom.module, alike)
                alike = None
            else:
                run = partial(self._without_text, atom)
                self.hidden = self.state.once(run, self.hidden, alike)
            if atom.leaves_skip:
                self.skips.append(self.hidden)
        return alike

    def _without_text(self, atom: Atom, hidden: Tensor) -> Tensor:
        if atom.kind == "resnet":
            return atom.module(hidden, self.embedding)
        return atom.module(hidden)

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

    def _attend(self, attention: nn.Module, alike: int | None = None) -> None:
        rows, hidden = self.rows, self.hidden
        apart = len(rows.segments) > 1 and not self.inputs.attention_kwargs
        apart = apart and self.state.kit.host and self.state.kit.takes(hidden)
        if not (apart and self.state.runs_apart(attention)):
            self.hidden = self._attended(attention, hidden, alike)
            return
        # Nothing is shared, and a few rows stay in the processor's caches.
        out, recorded = [], torch.is_grad_enabled()
        self.hidden = hidden if recorded else torch.empty_like(hidden)
        parts = hidden.split([stop - start for start, stop, _ in rows.parts])
        for part, (start, stop, self.state.rows) in zip(parts, rows.parts, strict=True):
            if recorded:
                out.append(self._attended(attention, part, alike))
            else:
                self.hidden[start:stop] = self._attended(attention, part, alike)
        if recorded:
            self.hidden = torch.cat(out)
        self.state.rows = rows

    def _attended(self, attention: nn.Module, hidden: Tensor, alike: int | None) -> Tensor:
        self.state.alike = alike
        try:
            return attention(
                hidden,
                encoder_hidden_states=self.state.rows.text,
                cross_attention_kwargs=self.inputs.attention_kwargs,
                return_dict=False,
            )[0]
        finally:
            self.state.alike = None
