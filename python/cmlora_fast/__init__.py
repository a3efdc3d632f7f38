"""Fast, dependable composition of several LoRAs on diffusers UNet pipelines."""

__version__ = "0.1.0"
