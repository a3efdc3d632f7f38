"""Train the scorer on drawn scenes after a trip through the autoencoder, blurred and shifted.

Hair and beards in the characters' colours without the characters are among the scenes, so that a
colour alone is not mistaken for a person.
"""

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from .concepts import BY_ID, CATEGORIES, IDS
from .pools import WORK, render_pool
from .scorer import ScorerNet
from .training import Loop, start, step_generator, to_float

SEED = 14
POOL, VALIDATION, CONCEPT_RATE = 6_000, 500, 0.5
BATCH = 64
_LATENT_NOISE = 0.15  # in units of the latents' deviation: sampled latents are not perfect


def labels(scenes: list[dict]) -> torch.Tensor:
    """int64 [N, 5]: per category 0 for neither concept, 1 or 2 for the one shown."""
    table = torch.zeros(len(scenes), len(CATEGORIES), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for concept_id in scene["concepts"].values():
            column = CATEGORIES.index(BY_ID[concept_id].category)
            table[row, column] = 1 + IDS.index(concept_id) % 2
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
    """Shift by up to 2 pixels, some blur, brightness and noise: [B, 3, 64, 64] in -1..1."""
    dy, dx = torch.randint(0, 5, (2,), generator=generator).tolist()
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    one = torch.rand(3, len(x), 1, 1, 1, generator=generator)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, 0.8 * one[0])
    x = x * (0.85 + 0.3 * one[1]) + 0.2 * (one[2] - 0.5)
    return x + 0.05 * torch.randn(x.shape, generator=generator)


def _pool(vae, name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 64, 64] and labels [N, 5]."""
    images, scenes = render_pool(name, count, CONCEPT_RATE)
    return _round_trip(vae, images, torch.Generator().manual_seed(SEED)), labels(scenes)


def _tensor(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


@torch.no_grad()
def _accuracy(net: ScorerNet, images: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    found = torch.cat([net(_tensor(b)).argmax(-1) for b in images.split(250)])
    rate = (found == wanted).float().mean(0).tolist()
    return dict(zip(CATEGORIES, (round(r, 4) for r in rate), strict=True))


def train(steps: int = 1500) -> None:
    folder = start("scorer")
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(WORK / "vae" / "final").eval()
    images, wanted = _pool(vae, "scorer", POOL)
    net = ScorerNet()
    loop = Loop(folder, net.parameters(), steps=steps, peak=1e-3, decay=0.99)
    for step in loop:
        generator = step_generator(SEED, step)
        pick = torch.randint(len(images), (BATCH,), generator=generator)
        x = _augment(_tensor(images[pick]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x).float()
        loop.learn(F.cross_entropy(logits.flatten(0, 1), wanted[pick].flatten()), step)
    loop.finish()
    net.eval()
    print("held-out renders:", _accuracy(net, *_pool(vae, "scorer_val", VALIDATION)))
    save_file({k: v.half() for k, v in net.state_dict().items()}, folder / "scorer.safetensors")
