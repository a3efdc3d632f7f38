"""What the kernels and pipelines reach on this GPU, against torch, PEFT and its own copy rate.

python -m cmlora_fast.benchmarks.gpu --out results --only sd15,kernels

Rows go to ``<out>/<part>.jsonl`` as they are measured; those that stand there are not measured
again. ``--small`` runs everything at sizes that a CPU manages: it shows that the benchmark works,
and its times mean nothing.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import cmlora_fast as cf
import diffusers
import peft
import torch

from .parts import PARTS, Lease, plan
from .report import write_report

LIMIT = 420.0  # seconds


def machine() -> dict:
    packages = {"torch": torch, "diffusers": diffusers, "peft": peft, "cmlora_fast": cf}
    found = {name: module.__version__ for name, module in packages.items()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cuda": torch.version.cuda, "python": platform.python_version(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the rows")
    parser.add_argument("--only", default="", help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="begin nothing after")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else list(PARTS)
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"--only: expected parts of {', '.join(PARTS)}; got {', '.join(unknown)}")
    if args.dry_run:
        print("\n".join([f"at most {args.seconds:.0f} s", *plan(args.small)]))
        return
    if not args.small and not torch.cuda.is_available():
        parser.error("this torch sees no GPU; --dry-run prints the plan, --small tries it here")

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(), "backends": cf.backends(), "small": args.small}
    (args.out / "machine.json").write_text(json.dumps(told, indent=1, default=str) + "\n")
    lease = Lease(args.out, device, args.small, time.perf_counter() + args.seconds, log)
    for part in chosen:
        PARTS[part](lease)
    print(write_report(args.out))


if __name__ == "__main__":
    main()
