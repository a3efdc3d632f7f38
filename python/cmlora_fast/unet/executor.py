"""Runs the rows of a step on a UNet: weights, text, chunks, and the weighted sum of predictions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..adapters import LoadedAdapters, WeightStore
from ..ops.tensors import plain_tensors
from .cache import FeatureCache
from .forward import Denoiser, Shared
from .graphs import StepGraphs
from .inputs import UNetInputs, text_key
from .layers import LayerHooks, LayerState
from .patches import frozen
from .replay import Outputs
from .rows import Chunk, Rows, StepRows, expand_rows, segments_of
from .tap import TAP_LEVEL
from .topology import Cut, Topology, freeu_is_on, processors_read_batch

__all__ = ["Executor", "combine"]

RowText = Callable[[int], tuple[Tensor, Tensor | None]]


class Executor:
    """One UNet, its hooked layers and their weights.

    Nothing here knows a method: a step is rows, shares and, where features are reused, a cache.
    """

    def __init__(self, unet: nn.Module):
        self.unet = unet
        self.store = WeightStore()
        self._state = LayerState()
        self._layers = LayerHooks(self._state)
        self._denoiser: Denoiser | None = None
        self._subsets: tuple[tuple[str, ...], ...] = ()
        self._row_text: RowText | None = None
        self._text_key: tuple | None = None
        self._text_sources: tuple[Tensor, ...] = ()  # alive while their key is compared
        self._text: Any = None
        self._own: tuple[Tensor, Tensor | None] | None = None
        self._chunks: dict[tuple, Chunk] = {}
        self._static = False
        self._kept_graphs: StepGraphs | None = None
        self.graphs: StepGraphs | None = None
        self.look()

    def look(self) -> None:
        """See the UNet as it is by now: layers may have been replaced, processors exchanged."""
        self._topology = Topology.of(self.unet)
        self.keeps_batch = processors_read_batch(self.unet)

    def prepare(
        self,
        adapters: LoadedAdapters,
        subsets: tuple[tuple[str, ...], ...],
        scale: float,
        weights: str,
        row_text: RowText | None = None,
        static: bool = False,
        graphs: Hashable | None = None,
        compiles: bool = False,
        gradients: bool = False,
    ) -> None:
        """Hook the adapted layers and make their weights for these subsets.

        ``row_text``, where prompts differ by subset, gives for a batch size embeddings
        (subsets * batch, tokens, D) and pooled ones (subsets * batch, D) or None; else, and for
        None, every subset reads those of the UNet call. ``static`` weights stay where they are and
        do not ask the host which rows carry which subset. ``graphs``, for static ones, has steps
        recorded and replayed; it names what they depend on beside the weights. ``compiles``: by
        torch.compile first. ``gradients``: ``run_tapped`` will be asked for some.
        """
        if self._kept_graphs is not None and len(subsets) != len(self._subsets):
            self._kept_graphs.clear()  # before other weights are made
        self._layers.attach(self.unet, adapters.layers)
        self._static = static
        with plain_tensors():  # they outlive the run, and a later one may need gradients
            made = self.store.prepare(adapters, subsets, scale, weights, static, gradients)
        self._state.use(made)
        self._subsets = subsets
        self._row_text = row_text
        self._denoiser = Denoiser.of(
            self.unet, self._topology, self._state, self._state.weights, row_text is not None
        )
        self.forget()
        self._begin_graphs(graphs, compiles)

    def _begin_graphs(self, setting: Hashable | None, compiles: bool) -> None:
        self.graphs = self._state.text_memory = None
        if setting is None:
            return
        if self._kept_graphs is None:
            self._kept_graphs = StepGraphs(self.unet.device, combine)
        self.graphs = self._kept_graphs
        self.graphs.begin(self._denoiser, self.unet, setting, compiles)
        self._state.text_memory = self.graphs.text

    def _mode(self):
        """What is kept from run to run is written to in the next one, whatever its grad mode."""
        return plain_tensors() if self._static else nullcontext()

    def new_cache(self, cut: Cut) -> FeatureCache:
        """For a run."""
        return FeatureCache(cut, None if self.graphs is None else self.graphs.features)

    def forget(self) -> None:
        """Drop what belongs to one run: text keys and values, and row tables."""
        self._state.rows = None
        self._state.drop_text()
        self._text_key, self._text_sources, self._text, self._own = None, (), None, None
        self._chunks.clear()

    def detach(self) -> None:
        """Unhook every layer and drop all weights."""
        self.forget()
        self._layers.detach()
        self._state.use({})
        self.graphs = self._kept_graphs = self._state.text_memory = None
        self.store.clear()

    def opaque(self, inputs: UNetInputs) -> str | None:
        """Why this call cannot be taken apart, so that features cannot be cached."""
        if inputs.opaque or self._topology.opaque:
            return inputs.opaque or f"the UNet has {self._topology.opaque}"
        if freeu_is_on(self.unet):
            return "FreeU is on"
        return "gradients are recorded" if torch.is_grad_enabled() else None

    def spans(self, rows: StepRows, max_rows: int | None) -> list[tuple[int, int]]:
        """Stretches (start, stop) of rows that run together: one adapter's, to keep the batch."""
        return rows.spans(rows.batch if self.keeps_batch else max_rows)

    def step(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        rows: StepRows,
        weights: Tensor | None,
        max_rows: int | None,
        cache: FeatureCache | None,
    ) -> Tensor:
        """Predictions (batch, C, H, W): those of all rows, summed by their shares ``weights``."""
        with self._mode():
            if self.graphs is not None and self._apart(inputs, cache):
                inputs = self._with_text(inputs)
                return self.graphs.run(self._denoiser, inputs, rows, weights, cache)
            return combine(self.run(plain, inputs, rows, max_rows, cache), weights)

    def replayed(
        self,
        function: Callable[[UNetInputs], Outputs],
        inputs: UNetInputs,
        rows: StepRows,
        key: Hashable,
    ) -> Outputs:
        """``function(inputs)`` for all ``rows`` at once, replayed where steps are recorded.

        It computes by ``run``, ``run_span`` or ``run_tapped`` and returns tensors without
        gradients; ``key`` tells whatever else it depends on.
        """
        with self._mode(), torch.no_grad():
            inputs = self._with_text(inputs)
            if self.graphs is None:
                return function(inputs)
            self._chunk(rows, 0, rows.count, inputs)  # from tables on the host: before recording
            return self.graphs.call(function, inputs, key)

    def run(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        rows: StepRows,
        max_rows: int | None,
        cache: FeatureCache | None,
    ) -> Tensor:
        """Predictions (rows.count, C, H, W), group-major."""
        inputs, spans = self._with_text(inputs), self.spans(rows, max_rows)
        shared = None
        if self._apart(inputs, cache) and spans[0][1] >= rows.batch:
            shared = self._denoiser.shared(inputs, cache)
        pieces = [self._run_span(plain, inputs, rows, span, cache, shared) for span in spans]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def run_span(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        rows: StepRows,
        span: tuple[int, int],
        cache: FeatureCache | None,
    ) -> Tensor:
        """Predictions of the rows ``span`` (start, stop)."""
        return self._run_span(plain, self._with_text(inputs), rows, span, cache, None)

    def _run_span(
        self,
        plain: Callable[..., Any],
        inputs: UNetInputs,
        rows: StepRows,
        span: tuple[int, int],
        cache: FeatureCache | None,
        shared: Shared | None,
    ) -> Tensor:
        """``inputs`` has its text."""
        chunk = self._chunk(rows, *span, inputs)
        try:
            if self._apart(inputs, cache):
                return self._denoiser(inputs, chunk, cache, shared)
            return self._as_a_whole(plain, inputs, chunk)
        finally:
            self._state.rows = None

    def run_tapped(
        self, inputs: UNetInputs, rows: StepRows, span: tuple[int, int], whole: bool
    ) -> Tensor | None:
        """Predictions of the rows ``span``, or None if not ``whole``, past the tapped layers.

        Where autograd is on, a graph leads from the sample to those layers and no further.
        """
        inputs = self._with_text(inputs)
        chunk = self._chunk(rows, *span, inputs)
        stop = self._topology.last_unit_at(TAP_LEVEL)
        self._state.constant_text = True
        try:
            with frozen(self.unet):
                return self._denoiser.tapped(inputs, chunk, stop, whole)
        finally:
            self._state.rows, self._state.constant_text = None, False

    def _apart(self, inputs: UNetInputs, cache: FeatureCache | None) -> bool:
        return cache is not None or self.opaque(inputs) is None

    def _as_a_whole(self, plain: Callable[..., Any], inputs: UNetInputs, chunk: Chunk) -> Tensor:
        """The UNet's own forward over the rows of a chunk."""
        arguments = {name: chunk.spread(value) for name, value in inputs.arguments.items()}
        adapters_in = arguments["down_intrablock_additional_residuals"]
        if adapters_in is not None:  # diffusers pops from this list
            arguments["down_intrablock_additional_residuals"] = list(adapters_in)
        arguments["cross_attention_kwargs"] = inputs.attention_kwargs
        arguments["return_dict"] = False
        if self._own is not None:
            text, pooled = self._own
            arguments["encoder_hidden_states"] = chunk.own(text)
            if pooled is not None:
                added = {**arguments["added_cond_kwargs"], "text_embeds": chunk.own(pooled)}
                arguments["added_cond_kwargs"] = added
        # Without text: the forward projects the embeddings itself, so they are not those we keep.
        self._state.rows = Rows(chunk.rows.segments, chunk.count)
        return plain(**arguments)[0].contiguous()

    def _chunk(self, rows: StepRows, start: int, stop: int, inputs: UNetInputs) -> Chunk:
        key = (rows, start, stop)
        if key not in self._chunks:
            device = inputs.sample.device
            own = self._row_text is not None
            self._chunks[key] = Chunk(rows, start, stop, inputs.text, device, own)
        return self._chunks[key]

    def _with_text(self, inputs: UNetInputs) -> UNetInputs:
        """Embeddings as attention reads them; keys and values go when they are others."""
        if inputs.text is not None:
            return inputs
        key, sources = text_key(inputs)
        if key != self._text_key:
            self._state.drop_text()
            self._chunks.clear()
            self._own = None if self._row_text is None else self._row_text(inputs.batch)
            text = self.unet.process_encoder_hidden_states(
                encoder_hidden_states=inputs.raw_text if self._own is None else self._own[0],
                added_cond_kwargs=inputs.added,
            )
            count = len(self._subsets)
            everyone = text if self._own else expand_rows(text, count, inputs.batch)
            subset_of_row = [s for s in range(count) for _ in range(inputs.batch)]
            self._state.all_rows = Rows(segments_of(subset_of_row), len(subset_of_row), everyone)
            self._text_key, self._text_sources, self._text = key, sources, text
            if self.graphs is not None:
                self._layers.make_text()
        return inputs.with_text(self._text, self._own and self._own[1])


def combine(noise: Tensor, weights: Tensor | None) -> Tensor:
    """(groups * batch, C, H, W) and shares (groups, batch[, H, W]) -> (batch, C, H, W)."""
    if weights is None:
        return noise
    groups, batch = weights.shape[:2]
    out = noise.new_empty(1, batch, *noise.shape[1:])
    ops.combine_(out, noise.view(1, groups, batch, *noise.shape[1:]), weights)
    return out[0]
