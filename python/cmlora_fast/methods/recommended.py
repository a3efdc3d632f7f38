"""How strong adapters should be for a method: measured, see docs/study.md, "Strength"."""

from __future__ import annotations

from numbers import Integral

from .cached import Merge, Method
from .clora import CLoRA
from .named import METHODS, resolve

__all__ = ["recommended_weights"]

# Of the strengths tried on the choice half of the study (0.5 to 1.4 for a sum, 0.7 to 2 for a mean;
# three LoRAs), the one at which most images showed every concept.
OF_A_SUM = 0.7
OF_A_MEAN = 1.4


def recommended_weights(method: str | Method | CLoRA | None, count: int) -> float:
    """The adapter weight that our evaluation found best: ``set_adapters(names, [weight] * count)``.

    A sum of ``count`` adapters wants less than each alone; a mean of their predictions, or turns,
    more, as each has but a share of the guidance. Found with three LoRAs of the embedded testbed,
    where weights that are too strong ruin images; your LoRAs may differ, and ``cmlora eval
    --lora-scale`` tries.

    Args:
        method: As ``enable`` takes it; the name "clora" too. None and Merge sum.
        count: Adapters that take part, 1 or more. One is used as it was trained: 1.

    Raises:
        ValueError: An unknown method, or a count that is not a whole number of 1 or more.
    """
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"count: expected a whole number of adapters, 1 or more; got {count!r}")
    kind = METHODS["clora"] if method == "clora" else type(resolve(method))
    if count == 1:
        return 1.0
    return OF_A_SUM if kind in (Merge, type(None)) else OF_A_MEAN
