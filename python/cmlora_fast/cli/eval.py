"""``cmlora eval``: which method composes best, on a testbed, with intervals."""

from __future__ import annotations

from cmlora_fast.report import print_json, print_table

from .images import make_folder
from .options import AsJson, expanded
from .quiet import quiet
from .requests import EvalRequest

__all__ = ["evaluate"]


@expanded
def evaluate(request: EvalRequest, as_json: AsJson = False) -> None:
    """Compare methods on a testbed: scores with intervals, wins and losses, seconds.

    Every method gets the same combinations and seeds. Each finished image is kept with a line in
    manifest.jsonl, so a run that was stopped goes on where it was; results.json, results.csv and
    report.md lie beside.
    """
    make_folder(request.out)
    with quiet():
        from .eval_run import run, write

        report = run(request)
        write(report, request.out)
    if as_json:
        print_json(report)
        return
    from cmlora_fast.eval.tables import comparison_table, judge_note, method_table

    print_table("methods", *method_table(report))
    print_table("pairs on equal seeds", *comparison_table(report))
    if "judge" in report:
        print_table("judge", *comparison_table(report["judge"]))
        print(f"judge: {judge_note(report['judge'])}")
    print(request.out / "report.md")
