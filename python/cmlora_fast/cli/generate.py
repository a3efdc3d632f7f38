"""``cmlora generate``: images from a model and LoRAs, parameters kept inside the PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmlora_fast.report import print_json

from .errors import CliError
from .images import make_folder
from .options import AsJson, expanded
from .quiet import quiet
from .requests import GenerateRequest

__all__ = ["generate"]


@expanded
def generate(request: GenerateRequest, as_json: AsJson = False) -> None:
    """Paint images with several LoRAs and keep all parameters in the PNG's metadata."""
    _check_out(request.out)
    if request.save_maps is not None:
        if request.method != "clora":
            raise CliError(
                f"--save-maps: only --method clora has maps; got --method {request.method}"
            )
        make_folder(request.save_maps, "--save-maps")
    with quiet():
        from .generate_run import run

        report = run(request)
    if as_json:
        print_json(report)
    else:
        print(_text(report))


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise CliError(f"--out {out}: is a directory; expected a file that ends in .png")
    if out.suffix.lower() != ".png":
        raise CliError(f"--out: expected a file that ends in .png; got {str(out)!r}")
    make_folder(out.parent)


def _text(report: dict[str, Any]) -> str:
    """The answer without ``--json``: the files, then what ran."""
    steps = report["summary"]["steps"]
    full = sum(step["full_rows"] for step in steps)
    shallow = sum(step["shallow_rows"] for step in steps)
    ran = f"{len(steps)} steps, {full} full and {shallow} shallow rows, {report['seconds']:.2f} s"
    maps = [report["filmstrip"]] if "filmstrip" in report else []
    return "\n".join([*report["images"], *maps, ran])
