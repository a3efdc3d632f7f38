import json

from cmlora_fast.cli import selfcheck


def test_json_tells_versions_machine_backends_and_checks(cmlora):
    code, out, err = cmlora("doctor", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["ok"] and report["versions"]["torch"] and report["machine"]["memory_bytes"] > 0
    assert set(report["backends"]) == {"cpu", "cuda", "triton", "torch"}
    for state in report["backends"].values():
        assert state["reason"] and bool(state["advice"]) == (not state["available"])
    needed = [check for check in report["checks"] if check["needed"]]
    assert len(needed) == 3 and all(check["ok"] for check in needed)


def test_a_broken_basic_fails(cmlora, monkeypatch):
    def broken():
        raise RuntimeError("out of order")

    monkeypatch.setattr(selfcheck, "_restores", broken)
    code, out, _ = cmlora("doctor")
    assert code == 1
    assert "FAILED" in out and "out of order" in out and "does not work" in out
