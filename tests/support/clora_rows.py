"""CLoRA by rows with embeddings of their own, quick to run."""

import torch
from cmlora_fast import CLoRA, Row

from . import adapters

NAMES = ["character_1", "clothing_1", "object_1"]


def rows_of(count, adapters=None):
    """A base row and ``count`` rows; every concept has a token of its own, in its row two."""
    adapters = adapters or [NAMES[j % len(NAMES)] for j in range(count)]
    rows = []
    for j, name in enumerate([None, *adapters]):
        tokens = [[2 + 3 * c, 3 + 3 * c] if c == j - 1 else [2 + 3 * c] for c in range(count)]
        rows.append(Row(name, "", "", tokens[j - 1] if j else (), tokens))
    return rows


def embeds(pipe, count, seed=5):
    draw = torch.Generator().manual_seed(seed)
    width = pipe.unet.config.cross_attention_dim
    return dict(
        row_prompt_embeds=torch.randn(count + 1, 77, width, generator=draw),
        row_negative_prompt_embeds=torch.randn(1, 77, width, generator=draw),
    )


def clora(pipe, count=3, **fields):
    quick = dict(iterative_steps=(0,), iterative_steps_steps=2, max_iter_to_alter=2)
    text = embeds(pipe, count)
    return CLoRA(**{"rows": rows_of(count), **quick, **text, **fields})


def fresh(names=NAMES, **options):
    return adapters.fresh(names, shape="one_layer", **options)
