"""``cmlora bench``: the verbs, and per verb the run with its document and tables."""

from .verbs import bench

__all__ = ["bench"]
