"""Methods by name."""

from __future__ import annotations

from .cached import CMLoRA, Composite, Merge, Method, Switch
from .clora import CLoRA

__all__ = ["METHODS", "resolve"]

METHODS: dict[str, type[Method] | type[CLoRA]] = {
    "merge": Merge,
    "switch": Switch,
    "composite": Composite,
    "cmlora": CMLoRA,
    "clora": CLoRA,
}


def resolve(method: str | Method | CLoRA | None) -> Method | CLoRA | None:
    """The method that ``enable(method=...)`` means; None stays None (lossless).

    Raises:
        ValueError: An unknown name, anything that is not a method, or "clora": it has no default
            rows.
    """
    if method is None or isinstance(method, Method | CLoRA):
        return method
    known = ", ".join(repr(name) for name in METHODS)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    raise ValueError(
        f"method: expected None, one of {known} or an instance of a method; got {method!r}"
    )
