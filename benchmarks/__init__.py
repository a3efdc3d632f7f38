"""The measurements behind ``cmlora bench``; installed as ``cmlora_fast.benchmarks``."""
