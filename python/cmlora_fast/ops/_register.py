"""Registration of the ops with torch."""

import functools
from collections.abc import Callable, Iterable

import torch


def register(
    *,
    mutates_args: Iterable[str] = (),
    fake: Callable | None = None,
    through_torch: Callable[..., bool] | None = None,
) -> Callable:
    """Register a function as ``cmlora_fast::<name>``, where ``torch.compile`` will see it.

    Eager calls go straight to the function: the boundary of a custom op costs tens of
    microseconds, more than most kernels.

    Args:
        mutates_args: Arguments written in place; the schema marks them.
        fake: Result for given arguments without computing it; ops that only mutate need none.
        through_torch: Says for given arguments that an eager call must pass torch's dispatcher
            after all, because autograd has to see it.
    """

    def wrap(fn: Callable) -> Callable:
        name = f"cmlora_fast::{fn.__name__}"
        op = torch.library.custom_op(name, fn, mutates_args=tuple(mutates_args))
        op.register_fake(fake or (lambda *args, **kwargs: None))

        @functools.wraps(fn)
        def call(*args, **kwargs):
            if torch.compiler.is_compiling() or (through_torch and through_torch(*args, **kwargs)):
                return op(*args, **kwargs)
            return fn(*args, **kwargs)

        call.op = op
        return call

    return wrap
