"""What is loaded in a model, and the weights that its layers run with."""

from .execution import Execution
from .folded import FoldedLayer
from .peft import AdaptedLayer, LoadedAdapters, read_adapters
from .structure import Structure
from .watch import Watch
from .weights import LayerWeights, WeightStore
from .wide import WideLayer

__all__ = [
    "AdaptedLayer",
    "Execution",
    "FoldedLayer",
    "LayerWeights",
    "LoadedAdapters",
    "Structure",
    "Watch",
    "WeightStore",
    "WideLayer",
    "read_adapters",
]
