"""Train the base model: UNet and text encoder together, noise prediction on concept-free scenes.

loss = w(SNR) min(SNR, 5) / SNR * |eps - unet(x_t, t, text)|^2, 10 % empty captions, EMA.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from .pools import WORK, render_pool
from .scenes import caption
from .text import LENGTH, WIDTH, new_text_encoder, new_tokenizer, tokenize
from .training import Loop, rank_and_count, start, step_generator, to_float

SEED = 12
POOL = 20_000
CAPTIONS_PER_IMAGE = 4
BATCH = 32
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
_MIN_SNR_GAMMA = 5.0
# The loss at t = 900 is a tenth of that at t = 100, but what the text decides is decided there:
# this factor roughly evens the two out. Without it captions had little effect by step 900.
_NOISY_POWER, _NOISY_MOST = -0.4, 5.0


def new_unet() -> UNet2DConditionModel:
    """SD 1.5's block types at a fifth of its width: stages 16, 8, 4, 2."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 128, 128),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4, 4),  # diffusers reads this as the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] to scaled latents, float16 [N, 4, 16, 16]."""
    out = []
    for batch in torch.from_numpy(images).split(64):
        with torch.autocast("cpu", torch.bfloat16):
            mode = vae.encode(to_float(batch)).latent_dist.mode()
        out.append((mode.float() * vae.config.scaling_factor).half())
    return torch.cat(out)


def denoising_loss(
    unet, text_encoder, scheduler, latents, tokens, generator, teach=lambda noisy, t, noise: noise
) -> torch.Tensor:
    """Min-SNR weighted noise-prediction loss.

    Args:
        latents: [B, 4, 16, 16].
        tokens: [B, LENGTH].
        teach: what to predict, of noisy latents, timesteps and noise (default: the noise).
    """
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, t)
    predicted = predict(unet, text_encoder, noisy, t, tokens)
    alpha = scheduler.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    weight = snr.clamp(max=_MIN_SNR_GAMMA) / snr * snr.pow(_NOISY_POWER).clamp(1, _NOISY_MOST)
    return (weight * (predicted - teach(noisy, t, noise)).square().mean((1, 2, 3))).mean()


def predict(unet, text_encoder, noisy, t, tokens) -> torch.Tensor:
    """The predicted noise, float32 [B, 4, 16, 16]."""
    with torch.autocast("cpu", torch.bfloat16):
        text = text_encoder(tokens).last_hidden_state
        return unet(noisy, t, text).sample.float()


def _captions(scenes: list[dict]) -> list[str]:
    rng = np.random.default_rng(SEED)
    return [caption(s, rng) for s in scenes for _ in range(CAPTIONS_PER_IMAGE)]


def _data(vae: AutoencoderKL, tokenizer_path, cache) -> tuple[torch.Tensor, torch.Tensor, object]:
    """Latents [N, 4, 16, 16], tokens [N, CAPTIONS_PER_IMAGE, LENGTH] and the tokenizer."""
    from transformers import CLIPTokenizer

    if not cache.exists():
        images, scenes = render_pool("base", POOL, rate=0.0)
        captions = _captions(scenes)
        tokenizer = new_tokenizer(captions)
        tokenizer.save_pretrained(tokenizer_path)
        tokens = tokenize(tokenizer, captions).view(-1, CAPTIONS_PER_IMAGE, LENGTH)
        torch.save({"latents": encode(vae, images), "tokens": tokens.short()}, cache)
    data = torch.load(cache, weights_only=True)
    return data["latents"], data["tokens"], CLIPTokenizer.from_pretrained(tokenizer_path)


def train(steps: int = 2400) -> None:
    folder = start("base")
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(WORK / "vae" / "final").eval()
    latents, tokens, tokenizer = _data(vae, folder / "tokenizer", folder / "data.pt")
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    scheduler, share = DDPMScheduler(**SCHEDULE), BATCH // rank_and_count()[1]
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    loop = Loop(folder, parameters, steps=steps, peak=8e-4, warmup=200)
    for step in loop:
        generator = step_generator(SEED, step)
        pick = torch.randint(len(latents), (share,), generator=generator)
        which = torch.randint(CAPTIONS_PER_IMAGE, (share,), generator=generator)
        x, ids = latents[pick].float(), tokens[pick, which].long()
        loop.learn(denoising_loss(unet, text_encoder, scheduler, x, ids, generator), step)
        if (step + 1) % 1000 == 0 and not loop.silent:
            _save(loop, unet, text_encoder, folder)
    if not loop.silent:
        _save(loop, unet, text_encoder, folder)


def _save(loop: Loop, unet, text_encoder, folder) -> None:
    """A usable copy of the averaged weights while training goes on."""
    current = [p.detach().clone() for p in loop.parameters]
    loop.finish()
    unet.save_pretrained(folder / "final" / "unet")
    text_encoder.save_pretrained(folder / "final" / "text_encoder")
    with torch.no_grad():
        for parameter, value in zip(loop.parameters, current, strict=True):
            parameter.copy_(value)
