"""``python -m cmlora_fast`` is ``cmlora``."""

import sys

from .cli import main

sys.exit(main())
