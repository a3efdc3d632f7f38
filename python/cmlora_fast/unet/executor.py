"""Runs the rows of a step on a UNet: weights, text, chunks, and the weighted sum of predictions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Execution, LoadedAdapters, Structure, Watch, WeightStore
from ..hooks import foreign_code, frozen, keeps_features, sweep
from ..ops.products import measured_convolutions
from ..ops.tensors import plain_tensors
from .cache import FeatureCache
from .forward import Denoiser, Shared
from .graphs import StepGraphs, why_not_replayed
from .inputs import UNetInputs, text_key, without_defaults
from .layers import LayerHooks
from .replay import Outputs
from .rows import Rows, RowTable, pick, segments_of, take
from .state import LayerState
from .tap import TAP_LEVEL, AttentionTap
from .texts import RunText, Texts, all_pairs
from .topology import Cut, Topology, freeu_is_on, what_reads_batch

__all__ = ["Executor", "Texts", "all_pairs"]

Plain = Callable[..., Any]


class Executor:
    """One UNet, its hooked layers and their weights; a step is a row table and maybe a cache."""

    def __init__(self, unet: nn.Module):
        self.unet = unet
        self.watch = Watch(unet)
        self.store = WeightStore()
        self.tap = AttentionTap()  # recorded passes know it
        self.graphs: StepGraphs | None = None
        self._kept_graphs: StepGraphs | None = None
        self._state = LayerState()
        self._layers = LayerHooks(self._state)
        self._denoiser: Denoiser | None = None
        self._execution = Execution()
        self._subsets = 0
        self._texts = Texts(all_pairs(0))
        self._text = RunText()
        self._rows: dict[tuple, Rows] = {}
        self.keeps_batch: str | None = None  # whose batch has to be the pipeline's
        self.keeper: str | None = None  # who keeps features from call to call
        self._seen: Structure | None = None
        self._prepared: tuple[LoadedAdapters, tuple] | None = None
        self.look()

    def look(self) -> None:
        """See the UNet as it is by now: layers may have been replaced, processors exchanged."""
        structure = self.watch.structure()
        if structure is self._seen:
            return
        self._seen = structure
        self._topology = Topology.of(self.unet)
        self._foreign, self.keeper = foreign_code(self.unet), keeps_features(self.unet)
        self.keeps_batch = what_reads_batch(self.unet, self._foreign)
        self.why_not_replayed = why_not_replayed(self.unet)
        self.tap.forget()

    def prepare(
        self,
        adapters: LoadedAdapters,
        subsets: Sequence[tuple[str, ...]],
        scale: float,
        execution: Execution,
        texts: Texts,
        device: torch.device,
    ) -> None:
        """Hook the adapted layers and make their weights, ``scale`` times as strong, on ``device``.

        All of it stays where everything is as it was at the last call.
        """
        own = texts.own is not None
        key = self._seen, tuple(subsets), scale, execution, own, device, self._seen.stamp()
        if self._prepared is not None and self._prepared[0] is adapters:
            if self._prepared[1] == key:
                return self._prepare_again(texts)
        self._prepared = None
        if self._kept_graphs is not None and len(subsets) != self._subsets:
            self._kept_graphs.clear()  # before other weights are made
        whole = self._foreign is not None
        self._layers.attach(self.unet, adapters.layers, device, self._seen, whole)
        with plain_tensors():  # they outlive the run, and a later one may need gradients
            joins = self._layers.joins if execution.static else ()
            made = self.store.prepare(adapters, subsets, scale, execution, joins)
        self._state.use(made, self.store.joined)
        self._subsets, self._execution, self._texts = len(subsets), execution, texts
        active = (layer.name for layer in adapters.layers if layer.adapters)
        self._denoiser = Denoiser.of(self.unet, self._topology, self._state, made, active, own)
        self.forget()
        self._begin_graphs()
        self._seen.settle()  # hooks of ours are no change
        self._prepared = adapters, key

    def _prepare_again(self, texts: Texts) -> None:
        self._texts = texts
        self.forget()
        self._state.begin_again()
        self.store.keep()
        if self.graphs is not None:
            self.graphs.begin_again()

    def _begin_graphs(self) -> None:
        self.graphs = self._state.text_memory = None
        if self._execution.recorded is None:
            return
        if self._kept_graphs is None:
            self._kept_graphs = StepGraphs(self._seen.place)
        self.graphs = self._kept_graphs
        self.graphs.begin(self._denoiser, self.unet, self._execution)
        self._state.text_memory = self.graphs.text

    def _mode(self) -> AbstractContextManager:
        """What is kept from run to run is written to in the next one, whatever its grad mode."""
        if not self._execution.static:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(plain_tensors())
        stack.enter_context(measured_convolutions())
        return stack

    def new_cache(self, cut: Cut, lasting: bool) -> FeatureCache:
        """For a run; ``lasting``: of features that lie where those of the next run will."""
        return FeatureCache(cut, self.graphs.features if self.graphs and lasting else None)

    def forget(self) -> None:
        """Drop what belongs to one run: text keys and values, and rows."""
        self._state.rows = None
        self._state.drop_text()
        self._text = RunText()
        self._rows.clear()

    def detach(self) -> None:
        """Unhook every layer and drop all weights."""
        self.forget()
        self._prepared = None
        self._layers.detach()
        sweep(self.unet)
        self._state.use({})
        self.graphs = self._kept_graphs = self._state.text_memory = None
        self.store.clear()

    def opaque(self, inputs: UNetInputs) -> str | None:
        """Why this call cannot be taken apart, so that features cannot be cached."""
        if inputs.opaque or self._topology.opaque:
            return inputs.opaque or f"the UNet has {self._topology.opaque}"
        if self._foreign is not None:
            return f"the UNet has {self._foreign.reason}"
        if freeu_is_on(self.unet):
            return "FreeU is on"
        return "gradients are recorded" if torch.is_grad_enabled() else None

    def step(
        self, plain: Plain, inputs: UNetInputs, table: RowTable, cache: FeatureCache | None
    ) -> Tensor:
        """Predictions (batch, C, H, W): those of a sample's rows, summed by their shares."""
        with self._mode():
            lasts = cache is None or cache.buffers is not None
            if self.graphs is not None and lasts and self._apart(inputs, cache):
                inputs = self._with_text(inputs)
                return self.graphs.run(self._denoiser, inputs, self._bound(table), table, cache)
            return table.combined(self.run(plain, inputs, table, cache))

    def replayed(
        self,
        function: Callable[[UNetInputs], Outputs],
        inputs: UNetInputs,
        table: RowTable,
        key: Hashable,
        compiles: bool,
    ) -> Outputs:
        """``function(inputs)`` for all rows at once, replayed where steps are recorded.

        It computes by ``run`` and its like, without gradients in what it returns; ``key`` tells
        whatever else it depends on, ``compiles`` whether torch.compile may have it.
        """
        with self._mode(), torch.no_grad():
            inputs = self._with_text(inputs)
            if self.graphs is None:
                return function(inputs)
            self._bound(table)  # from tables on the host: before recording
            return self.graphs.call(function, inputs, key, compiles)

    def run(
        self, plain: Plain, inputs: UNetInputs, table: RowTable, cache: FeatureCache | None
    ) -> Tensor:
        """Predictions (rows, C, H, W) of all rows."""
        inputs, shared, pieces = self._with_text(inputs), None, []
        for rows in self.chunks(inputs, table):
            if not pieces and rows.count >= inputs.batch and self._apart(inputs, cache):
                shared = self._denoiser.shared(inputs, cache)
            pieces.append(self.run_rows(plain, inputs, rows, cache, shared))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def chunks(self, inputs: UNetInputs, table: RowTable) -> list[Rows]:
        """The rows of a step, as many at a time as run together: one adapter's, to keep a batch."""
        inputs, count = self._with_text(inputs), len(table)
        size = inputs.batch if self.keeps_batch else self._execution.max_rows or count
        if size >= count:
            return [self._bound(table)]
        return [self._bound(table[start : start + size]) for start in range(0, count, size)]

    def run_rows(
        self,
        plain: Plain,
        inputs: UNetInputs,
        rows: Rows,
        cache: FeatureCache | None = None,
        shared: Shared | None = None,
    ) -> Tensor:
        """Predictions of the rows of a chunk."""
        try:
            if self._apart(inputs, cache):
                return self._denoiser(self._with_text(inputs), rows, cache, shared)
            return self._as_a_whole(plain, inputs, rows)
        finally:
            self._state.rows = None

    def run_tapped(self, inputs: UNetInputs, rows: Rows, whole: bool) -> Tensor | None:
        """Predictions of the rows of a chunk, or None if not ``whole``, past the tapped layers.

        Where autograd is on, a graph leads from the sample to those layers and no further.
        """
        stop = self._topology.last_unit_at(TAP_LEVEL)
        self._state.constant_text = True
        try:
            with frozen(self._seen.parameters):
                return self._denoiser.tapped(self._with_text(inputs), rows, stop, whole)
        finally:
            self._state.rows, self._state.constant_text = None, False

    def _apart(self, inputs: UNetInputs, cache: FeatureCache | None) -> bool:
        return cache is not None or self.opaque(inputs) is None

    def _as_a_whole(self, plain: Plain, inputs: UNetInputs, rows: Rows) -> Tensor:
        """The UNet's own forward over the rows of a chunk."""
        arguments = {k: rows.spread(value, inputs.batch) for k, value in inputs.arguments.items()}
        popped = "down_intrablock_additional_residuals"  # by diffusers
        if arguments[popped] is not None:
            arguments[popped] = list(arguments[popped])
        arguments["cross_attention_kwargs"] = inputs.attention_kwargs
        arguments["return_dict"] = False
        own, pooled = self._text.own, self._text.pooled
        if own is not None:
            arguments["encoder_hidden_states"] = take(own, rows.text_rows, len(own))
        if pooled is not None:
            arguments["added_cond_kwargs"] |= {"text_embeds": pick(pooled, rows.text_rows)}
        # Without text: the forward projects the embeddings itself, so they are not those we keep.
        self._state.rows = Rows(rows.segments, rows.count)
        # Positional, and no more than was given: somebody's wrapper may read them so.
        first = arguments.pop("sample"), arguments.pop("timestep")
        return plain(*first, **without_defaults(arguments))[0].contiguous()

    def _bound(self, table: RowTable) -> Rows:
        """The rows of a table with their text, kept while the text of the run is."""
        rows = self._rows.get(table.key)
        if rows is None:
            everyone = self._text.everyone
            text = take(everyone.text, table.text, everyone.count)
            rows = self._rows[table.key] = Rows.of(table, text)
        return rows

    def _with_text(self, inputs: UNetInputs) -> UNetInputs:
        """Embeddings as attention reads them; keys and values go when they are others."""
        if inputs.text is not None:
            return inputs
        key, sources = text_key(inputs)
        if key != self._text.key:
            self._state.drop_text()
            self._rows.clear()
            self._text = self._read_text(inputs, key, sources)
            self._state.all_rows = self._text.everyone
            if self.graphs is not None:
                self._layers.make_text()
        text = self._text
        return replace(inputs, text=text.text, text_rows=text.text_rows, pooled=text.pooled)

    def _read_text(self, inputs: UNetInputs, key: tuple, sources: tuple[Tensor, ...]) -> RunText:
        own, pooled, batch = None, None, inputs.batch
        if self._texts.own is not None:
            own, pooled = self._texts.own(batch)
        text = self.unet.process_encoder_hidden_states(
            encoder_hidden_states=inputs.raw_text if own is None else own,
            added_cond_kwargs=inputs.added,
        )
        subsets, samples = zip(*self._texts.pairs(batch), strict=True)
        everyone = text if own is not None else take(text, samples, batch)
        rows = Rows(segments_of(subsets), len(subsets), everyone, tuple(range(len(subsets))))
        first = tuple(samples.index(n) for n in range(batch))
        return RunText(key, sources, text, first, rows, own, pooled)
