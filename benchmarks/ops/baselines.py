"""What a user would write without our ops: unfused torch pairs, PEFT's layer, numpy."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from cmlora_fast.ops import reference
from cmlora_fast.ops.lora_delta import PackedAdapters
from torch import Tensor, nn

Calls = dict[str, Callable[[], object]]


def lora_delta_calls(y, x, a, b, slots, row_ptr, row_slot, row_scale) -> Calls:
    """Packed slabs, the unfused pairs, and layers with their base product."""
    packed = PackedAdapters(a, b, slots)
    tables = row_ptr, row_slot, row_scale
    table = Table(a, b, slots, *tables)
    calls = {
        "packed": lambda: packed.lora_delta_(y, x, *tables),
        "pair add_": lambda: table.pair_add(y, x),
        "pair addmm_": lambda: table.pair_addmm(y, x),
    }
    if table.one_of_equal_rank:
        calls["pair baddbmm_"] = lambda: table.pair_baddbmm(y, x)
    base = nn.Linear(x.shape[-1], y.shape[-1], dtype=x.dtype).requires_grad_(False)
    peft = peft_layer(base, table)

    def our_layer():
        out = base(x)
        packed.lora_delta_(out, x, *tables)
        return out

    return {**calls, "our layer": our_layer, "PEFT layer": lambda: peft(x)}


class Table:
    """The adapters of every row as ready slices, and room for what passes between two products."""

    def __init__(self, a, b, slots, row_ptr, row_slot, row_scale):
        ends = slots.tolist()
        self.pairs = [
            (a[i:j].T.contiguous(), b[:, i:j].T.contiguous()) for i, j in itertools.pairwise(ends)
        ]
        entries = list(zip(row_slot.tolist(), row_scale.tolist(), strict=True))
        self.rows = [entries[i:j] for i, j in itertools.pairwise(row_ptr.tolist())]
        self.one_of_equal_rank = (
            len(self.rows) > 1
            and all(len(row) == 1 for row in self.rows)
            and len({down.shape for down, _ in self.pairs}) == 1
        )
        if self.one_of_equal_rank:
            order = [row[0][0] for row in self.rows]
            self.downs = torch.stack([self.pairs[slot][0] for slot in order])
            self.ups = torch.stack([self.pairs[slot][1] * scale for ((slot, scale),) in self.rows])
        self.hidden = {}

    def pair_add(self, y: Tensor, x: Tensor) -> None:
        for y_row, x_row, entries in zip(y, x, self.rows, strict=True):
            for slot, scale in entries:
                down, up = self.pairs[slot]
                y_row.add_((x_row @ down) @ up, alpha=scale)

    def pair_addmm(self, y: Tensor, x: Tensor) -> None:
        for y_row, x_row, entries in zip(y, x, self.rows, strict=True):
            for slot, scale in entries:
                down, up = self.pairs[slot]
                hidden = self._hidden(slot, x_row.new_empty, (x_row.shape[0], down.shape[1]))
                y_row.addmm_(torch.mm(x_row, down, out=hidden), up, alpha=scale)

    def pair_baddbmm(self, y: Tensor, x: Tensor) -> None:
        shape = (x.shape[0], x.shape[1], self.downs.shape[2])
        hidden = self._hidden("all", x.new_empty, shape)
        y.baddbmm_(torch.bmm(x, self.downs, out=hidden), self.ups)

    def _hidden(self, key, make, shape) -> Tensor:
        if key not in self.hidden:
            self.hidden[key] = make(shape)
        return self.hidden[key]


def peft_layer(base: nn.Linear, table: Table) -> Callable[[Tensor], Tensor]:
    """PEFT's LoRA layer around ``base``: all adapters active, or one per sample of the batch."""
    from peft import LoraConfig, get_peft_model

    ranks = [down.shape[1] for down, _ in table.pairs]
    configs = [LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]) for rank in ranks]
    model = get_peft_model(nn.Sequential(base), configs[0], adapter_name="0")
    for slot, config in enumerate(configs[1:], start=1):
        model.add_adapter(str(slot), config)
    layer = model.base_model.model[0].requires_grad_(False).eval()
    for slot, (down, up) in enumerate(table.pairs):
        layer.lora_A[str(slot)].weight.data = down.T.contiguous()
        layer.lora_B[str(slot)].weight.data = up.T.contiguous()
    for slot, scale in itertools.chain(*table.rows):
        layer.scaling[str(slot)] = scale
    layer.set_adapter([str(slot) for slot, _ in table.rows[0]])
    if len(table.rows) == 1:
        return layer
    names = [str(row[0][0]) for row in table.rows]
    return lambda x: layer(x, adapter_names=names)


def group_norm_calls(x, groups, weight, bias, shift, eps, silu) -> Calls:
    images = x.mT.unsqueeze(-1)  # [rows, C, tokens, 1], channels last
    parameters = groups, weight.to(x.dtype), bias.to(x.dtype), eps
    added = shift.to(x.dtype)[:, :, None, None]
    return {"channels last": lambda: F.silu(F.group_norm(images + added, *parameters))}


def radial_amplitude_calls(latents: Tensor) -> Calls:
    images = latents.float().numpy()
    return {"numpy": lambda: [numpy_profile(image) for image in images]}


def numpy_profile(latent: np.ndarray) -> tuple[float, np.ndarray]:
    """High-frequency mean and profile of one latent [C, H, W], as a user would write them."""
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(latent.mean(axis=0))))
    height, width = amplitude.shape
    rows, columns = np.indices((height, width))
    radius = np.sqrt((columns - width // 2) ** 2 + (rows - height // 2) ** 2).astype(int)
    profile = np.array([amplitude[radius == r].mean() for r in range(radius.max() + 1)])
    profile /= profile.max()
    first = reference.first_bin(height, width, 0.2)
    return profile[first:].mean(), profile


BASELINES: dict[str, Callable[..., Calls]] = {
    "lora_delta_": lora_delta_calls,
    "group_norm": group_norm_calls,
    "radial_amplitude": radial_amplitude_calls,
}
