"""Which method, for these LoRAs? Testbeds, paired runs that survive a kill, scorers, statistics.

Imports the public API only. The command line over it: ``cmlora eval``, ``grid``, ``analyze``.
"""

from .combinations import generate_combinations, sample
from .controls import shallow_share, with_controls
from .jobs import Adapter, Generation, Job, model_digest
from .lora_info import LoraEntry, read_lora_info
from .paint import Painted
from .run import evaluate
from .samples import Candidate, Sample, jobs_of, make_samples
from .store import ImageStore, Ledger
from .testbeds import EMBEDDED, Testbed, composlora, embedded

__all__ = [
    "EMBEDDED",
    "Adapter",
    "Candidate",
    "Generation",
    "ImageStore",
    "Job",
    "Ledger",
    "LoraEntry",
    "Painted",
    "Sample",
    "Testbed",
    "composlora",
    "embedded",
    "evaluate",
    "generate_combinations",
    "jobs_of",
    "make_samples",
    "model_digest",
    "read_lora_info",
    "sample",
    "shallow_share",
    "with_controls",
]
