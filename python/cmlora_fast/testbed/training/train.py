"""One training stage, resumed if begun.

`python -m cmlora_fast.testbed.training.train STAGE [--steps N]`
"""

import argparse
import importlib

STAGES = ("vae", "decoder", "base", "loras", "scorer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the stage's own)")
    parser.add_argument(
        "--only", nargs="*", help="stage loras: which, e.g. anime/style_1 (default: all)"
    )
    args = parser.parse_args()
    stage = importlib.import_module(f".train_{args.stage}", __package__)
    options = {"steps": args.steps} if args.steps else {}
    if args.only:
        options["only"] = args.only
    stage.train(**options)


if __name__ == "__main__":
    main()
