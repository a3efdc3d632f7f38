"""Train the autoencoder: 64 x 64 RGB <-> 4 x 16 x 16 latents.

loss = L1(x, y) + L1(edges of x, edges of y) + 1e-6 KL, on scenes with and without concepts: like a
real SD autoencoder it knows all pictures, and only the denoiser has to be taught the concepts.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .pools import render_pool
from .training import Loop, start, step_generator, to_float

SEED = 11
POOL, CONCEPT_RATE = 16_000, 0.3
BATCH = 16
_KL = 1e-6
_PROBE = 1024  # images for the mean scale of the latents


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 3, H, W] to horizontal and vertical differences."""
    return x.diff(dim=-1), x.diff(dim=-2)


def _loss(vae: AutoencoderKL, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        latents = posterior.sample(generator)
        y = vae.decode(latents).sample.float()
    return picture_loss(y, x) + _KL * posterior.kl().mean()


def picture_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(y), _edges(x), strict=True))
    return F.l1_loss(y, x) + edges + 0.5 * F.mse_loss(y, x)


@torch.no_grad()
def set_scale(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """scaling_factor = 1 / std of the latents, as in SD."""
    latents = torch.cat([vae.encode(to_float(b)).latent_dist.mode() for b in images.split(64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))


def train(steps: int = 2600) -> None:
    folder = start("vae")
    torch.manual_seed(SEED)
    images = torch.from_numpy(render_pool("vae", POOL, CONCEPT_RATE)[0])
    vae = new_vae()
    loop = Loop(folder, vae.parameters(), steps=steps, peak=2e-3, decay=0.995)
    for step in loop:
        generator = step_generator(SEED, step)
        pick = torch.randint(len(images), (BATCH,), generator=generator)
        loop.learn(_loss(vae, to_float(images[pick]), generator), step)
    loop.finish()
    set_scale(vae.eval(), images[:_PROBE])
    vae.save_pretrained(folder / "final")
