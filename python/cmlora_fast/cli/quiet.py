"""Keep the libraries' chatter off both streams, and our own warnings to one line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from cmlora_fast.report import printable

__all__ = ["quiet"]

# Read when the libraries are imported; their notices of that moment come before any call could.
LEVELS = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Standard output stays empty inside; of warnings only those of cmlora_fast are shown."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"cmlora_fast(\.|$)")
        warnings.showwarning = _show
        for name in LEVELS:
            os.environ.setdefault(name, "error")
        stack.callback(_silence_libraries())
        yield


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def _silence_libraries():
    """Errors only, no bars; returns what restores the libraries' own levels."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    before = [(log, log.get_verbosity()) for log in (diffusers_log, transformers_log)]
    bars = [(log, log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    for log, _ in before:
        log.set_verbosity_error()
        log.disable_progress_bar()

    def restore() -> None:
        for log, level in before:
            log.set_verbosity(level)
        for log, shown in bars:
            if shown:
                log.enable_progress_bar()

    return restore
