"""Train the autoencoder's decoder further on scenes with concepts; the latents stay what they are.

It shows concepts in their colours that joined after the autoencoder was trained, while the base
model, whose pictures are latents, needs no training.
"""

import torch
from diffusers import AutoencoderKL

from .pools import WORK, render_pool
from .train_vae import picture_loss
from .training import Loop, start, step_generator, to_float

SEED = 15
POOL, CONCEPT_RATE = 3_000, 0.4
BATCH = 16


def train(steps: int = 500) -> None:
    folder = start("decoder")
    torch.manual_seed(SEED)
    images = torch.from_numpy(render_pool("decoder", POOL, CONCEPT_RATE)[0])
    vae = AutoencoderKL.from_pretrained(WORK / "vae" / "final")
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    loop = Loop(folder, parameters, steps=steps, peak=1e-3, decay=0.99)
    for step in loop:
        generator = step_generator(SEED, step)
        pick = torch.randint(len(images), (BATCH,), generator=generator)
        x = to_float(images[pick])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample(generator)
            y = vae.decode(latents).sample.float()
        loop.learn(picture_loss(y, x), step)
    loop.finish()
    vae.save_pretrained(folder / "final")
