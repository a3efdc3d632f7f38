"""Inputs of every op, for benchmarks and for the tests of its kernels on every backend."""

from . import clora, latents, layers, lora

CASES = layers.CASES | lora.CASES | latents.CASES | clora.CASES
MEASURED = tuple(op for op, its in CASES.items() if "cpu" in its.kernels)  # by ``cmlora bench``
