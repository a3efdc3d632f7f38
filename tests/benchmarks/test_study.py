"""The study: its halves are apart, its page says what its results say, its calls paint alike."""

from dataclasses import replace
from statistics import fmean

import cmlora_fast as cf
import numpy as np
import pytest
from cmlora_fast import eval as lab
from cmlora_fast import testbed
from cmlora_fast.benchmarks.study import __main__ as study
from cmlora_fast.benchmarks.study import page as study_page
from cmlora_fast.benchmarks.study.sets import MEAN, PARTS, SUM, Entry, Half, Part
from cmlora_fast.benchmarks.study.tables import Study
from cmlora_fast.eval.paint import call


@pytest.fixture(scope="module")
def recorded():
    return Study(study.RESULTS / study.SHOWS, study.RESULTS / study.SECONDS)


def test_choices_and_reports_share_no_seed_and_no_combination():
    halves = {part.half.name: part.half for part in PARTS}
    choice, report = halves["choice"], halves["report"]
    assert not set(choice.seeds) & set(report.seeds)
    for n in (2, 3, 4, 5):
        every = lab.generate_combinations(testbed.lora_info(), n)
        one, other = (lab.sample(every, half.combinations[n]) for half in (choice, report))
        assert not [c for c in one if c in other]


def test_the_results_are_those_of_the_parts(recorded):
    for part in PARTS:
        for n in part.counts:
            lines = recorded.lines(part.name, n)
            assert lines == [(entry.label, entry.strength) for entry in part.entries]
            for line in lines:
                shows = recorded.cell(part.name, n, *line)["shows"]
                words = [word for group in shows.values() for word in group]
                assert {len(word) for word in words} == {n}
                assert all(len(group) == len(part.half.seeds) for group in shows.values())


def test_strengths_are_the_best_of_the_choice_half(recorded):
    found = {}
    for label, strength in recorded.lines("strength", 3):
        values = recorded.values("recall", "strength", 3, label, strength)
        found.setdefault(label, {})[strength] = fmean(values.values())
    for label, means in found.items():
        assert max(means, key=means.get) == (SUM if label == "merge" else MEAN)


def test_the_page_is_written_from_the_results(recorded):
    assert (study_page.DOCS / "study.md").read_text() == study_page.page(recorded)


def test_seeds_in_one_call_are_painted_as_one_by_one(tmp_path, monkeypatch):
    short = replace(study.generation(), steps=2)
    monkeypatch.setattr(study, "generation", lambda: short)
    entries = Entry("merge", cf.Merge()), Entry("CMLoRA", cf.CMLoRA(cache_interval=2))
    part = Part("some", Half("some", {2: "0:1"}, range(2)), (2,), entries)
    pipe, store = study.load("anime"), lab.ImageStore(tmp_path)
    jobs = [sample.job for sample in study.samples_of(part, "anime")]
    study.paint_all(pipe, jobs, store, lambda: None)
    for job in jobs:
        assert store.has(job)
        image, summary = call(pipe, job)
        painted = study_page.Image.open(store.path(job))
        gap = np.abs(np.asarray(image, int) - np.asarray(painted, int))
        assert gap.max() <= 2  # levels of 255: rounding
        assert store.record(job)["full_rows"] == sum(step.full_rows for step in summary.steps)


def test_results_that_are_there_are_kept_and_the_rest_is_painted(tmp_path, monkeypatch):
    short = replace(study.generation(), steps=1)
    monkeypatch.setattr(study, "generation", lambda: short)
    part = Part("some", Half("some", {2: "0:2"}, range(2)), (2,), (Entry("merge", cf.Merge()),))
    groups = [f"anime/{'+'.join(s.group)}" for s in study.samples_of(part, "anime")][::2]
    line = {"full_rows": 7.0, "shallow_rows": 1.0, "shows": {groups[0]: ["01", "11"]}}
    known = {("some", 2, "merge", MEAN): line}
    left = study.missing(part, "anime", known)
    assert [f"anime/{'+'.join(s.group)}" for s in left] == [groups[1]] * 2
    (cell,) = study.shows(part, lab.ImageStore(tmp_path), lambda: None, known)
    assert cell["shows"][groups[0]] == ["01", "11"]
    assert len(cell["shows"]) == 4 and len(list((tmp_path / "images").iterdir())) == 6
    assert cell["full_rows"] == 2.0 and line["shows"] == {groups[0]: ["01", "11"]}
