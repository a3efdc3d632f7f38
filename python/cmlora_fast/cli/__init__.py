"""The command line ``cmlora``. Verbs import torch and diffusers only when they run."""

from .app import main

__all__ = ["main"]
