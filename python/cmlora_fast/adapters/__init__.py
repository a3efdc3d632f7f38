"""What is loaded in a model, and the weights that its layers run with."""

from .execution import Execution
from .peft import AdaptedLayer, LoadedAdapters, read_adapters
from .structure import Structure
from .watch import Watch
from .weights import WeightStore

__all__ = [
    "AdaptedLayer",
    "Execution",
    "LoadedAdapters",
    "Structure",
    "Watch",
    "WeightStore",
    "read_adapters",
]
