"""Loops that users write themselves around a pipeline's UNet and scheduler."""

import torch

NEW = ("other words", "cpu", 1, True, "bad")  # arguments of ``encode_prompt``


class Loop:
    """Sampling as users write it: guidance in one UNet call or in two, with or without a step."""

    def __init__(self, pipe, images=1):
        positive, negative = pipe.encode_prompt(*NEW)
        self.pipe, self.images = pipe, images
        self.text = [t.expand(images, -1, -1) for t in (negative, positive)]

    def run(self, steps=8, *, apart, answers=True):
        scheduler, draw = self.pipe.scheduler, torch.Generator().manual_seed(0)
        scheduler.set_timesteps(steps)
        x = torch.randn(self.images, 4, 16, 16, generator=draw)
        for t in scheduler.timesteps:
            u, c = self.predict(x, t, apart)
            if answers:
                x = scheduler.step(u + 4 * (c - u), t, x).prev_sample
            else:
                x = x - 0.1 * (u + 4 * (c - u))
        return x

    @torch.no_grad()
    def predict(self, x, t, apart):
        unet = self.pipe.unet
        if apart:
            return [unet(x, t, encoder_hidden_states=text).sample for text in self.text]
        both = unet(torch.cat([x, x]), t, encoder_hidden_states=torch.cat(self.text))
        return both.sample.chunk(2)
