"""Train the scorer on drawn scenes after a trip through the autoencoder, much disturbed.

Hair and beards in the characters' colours without the characters are among the scenes, so that a
colour alone is not mistaken for a person.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from ..concepts import BY_KEY, CATEGORIES
from ..scorer import CLASSES, ScorerNet
from .pools import WORK, render_pool
from .training import Loop, start, step_generator, to_float

SEED = 14
POOL, VALIDATION, CONCEPT_RATE = 6_000, 1_500, 0.6
BATCH = 64
_GHOST, _GHOST_RATE = 0.35, 0.5  # a ghost's greatest opacity, share of pictures with one
_LATENT_NOISE = 0.3  # in units of the latents' deviation: sampled latents are not perfect


def labels(scenes: list[dict]) -> torch.Tensor:
    """int64 [N, 5]: per category the class shown, 0 for none."""
    table = torch.zeros(len(scenes), len(CATEGORIES), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for category, key in scene["concepts"].items():
            shown = CLASSES[category].index(BY_KEY[key])
            table[row, CATEGORIES.index(category)] = shown
    return table


@torch.no_grad()
def _round_trip(vae: AutoencoderKL, images: np.ndarray, generator) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] to uint8 [N, 3, 64, 64] through noisy latents."""
    out = []
    for batch in torch.from_numpy(images).split(64):
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(to_float(batch)).latent_dist.mode().float()
            amount = _LATENT_NOISE / vae.config.scaling_factor
            amount = amount * torch.rand(len(z), 1, 1, 1, generator=generator)
            z = z + amount * torch.randn(z.shape, generator=generator)
            y = vae.decode(z).sample.float()
        out.append(((y + 1) * 127.5).clamp(0, 255).round().byte())
    return torch.cat(out)


def _augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What sampling does to pictures [B, 3, 64, 64] in -1..1: shift, blur, fade, change colours.

    In some a ghost of another picture shines through; its concepts do not count as shown.
    """

    def between(low: float, high: float, channels: int = 1) -> torch.Tensor:
        drawn = torch.rand(len(x), channels, 1, 1, generator=generator)
        return low + (high - low) * drawn

    x = torch.lerp(x, x.roll(1, 0), between(0, _GHOST) * (between(0, 1) < _GHOST_RATE))
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, between(0, 0.9))
    x = torch.lerp(x, x.mean(1, keepdim=True), between(-0.4, 0.4))  # saturation
    x = x * between(0.6, 1.3) + between(-0.2, 0.2) + between(-0.1, 0.1, channels=3)
    return x.clamp(-1, 1) + 0.05 * torch.randn(x.shape, generator=generator)


def _pool(vae, name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 64, 64] and labels [N, 5]."""
    images, scenes = render_pool(name, count, CONCEPT_RATE)
    return _round_trip(vae, images, torch.Generator().manual_seed(SEED)), labels(scenes)


def _tensor(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


@torch.no_grad()
def _accuracy(net: ScorerNet, images: torch.Tensor, wanted: torch.Tensor) -> dict[str, dict]:
    """Per concept the share of pictures with it that are recognised, and of others mistaken."""
    batches = [[x.argmax(-1) for x in net(_tensor(b))] for b in images.split(250)]
    table = {}
    for k, classes in enumerate(CLASSES.values()):
        found = torch.cat([b[k] for b in batches])
        for n, concept in enumerate(classes[1:], start=1):
            shows, said = wanted[:, k] == n, found == n
            table[concept.key] = {
                "pictures": int(shows.sum()),
                "recognised": round((said & shows).sum().item() / shows.sum().item(), 4),
                "mistaken": round((said & ~shows).sum().item() / (~shows).sum().item(), 4),
            }
    return table


def train(steps: int = 1500) -> None:
    folder = start("scorer")
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(WORK / "decoder" / "final").eval()
    images, wanted = _pool(vae, "scorer", POOL)
    net = ScorerNet()
    loop = Loop(folder, net.parameters(), steps=steps, peak=1e-3, decay=0.99)
    for step in loop:
        generator = step_generator(SEED, step)
        pick = torch.randint(len(images), (BATCH,), generator=generator)
        x = _augment(_tensor(images[pick]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x)
        losses = [
            F.cross_entropy(x.float(), y) for x, y in zip(logits, wanted[pick].T, strict=True)
        ]
        loop.learn(torch.stack(losses).mean(), step)
    loop.finish()
    net.eval()
    table = _accuracy(net, *_pool(vae, "scorer_val", VALIDATION))
    (folder / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")
    save_file({k: v.half() for k, v in net.state_dict().items()}, folder / "scorer.safetensors")
