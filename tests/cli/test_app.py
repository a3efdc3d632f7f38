import json
import subprocess
import sys

import pytest
from cmlora_fast.cli import generate_run
from cmlora_fast.cli.app import app
from typer.testing import CliRunner

VERBS = [["demo"], ["generate"], ["doctor"], ["lora", "inspect"], ["bench", "kernels"]]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_holds_an_example(verb):
    # A wide terminal without colours, so that nothing is broken or marked up in the middle.
    environment = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner().invoke(app, [*verb, "--help"], env=environment)
    assert result.exit_code == 0
    assert f"Example: cmlora {' '.join(verb)}" in " ".join(result.output.split())


def test_help_of_the_whole_lists_the_verbs(cmlora):
    code, out, _ = cmlora("--help")
    assert code == 0
    assert all(name in out for name in ("demo", "generate", "doctor", "lora", "bench"))


def test_version(cmlora):
    code, out, err = cmlora("--version")
    assert code == 0 and out.startswith("cmlora-fast ") and not err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["paint"], "No such command 'paint'"),
        (["generate"], "Missing option '--prompt'"),
        (["generate", "-p", "x", "--steps", "none"], "'--steps'"),
        (["demo", "--sorts"], "No such option"),
        (["demo", "--seed", 2**63], "'--seed'"),
        (["generate", "-p", "x", "--seed", 2**63], "'--seed'"),
        (["generate", "-p", "x", "--guidance-scale", "nan"], "'--guidance-scale': expected a fini"),
        (["eval", "--lora-scale", "inf"], "'--lora-scale': expected a finite number; got inf"),
        (["grid", "--lora", "style_1", "--eta", "nan"], "'--eta'"),
    ],
)
def test_wrong_usage_is_one_line(cmlora, arguments, message):
    code, out, err = cmlora(*arguments)
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_an_interrupt_ends_with_130_and_one_line(cmlora, monkeypatch):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_run, "run", interrupted)
    code, out, err = cmlora("generate", "-p", "x")
    assert code == 130 and not out
    assert err.strip() == "interrupted"


def test_debug_shows_the_traceback(cmlora, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        cmlora("--debug", "lora", "inspect", tmp_path / "x.safetensors")


def test_an_unexpected_error_names_its_type(cmlora, monkeypatch):
    monkeypatch.setattr(generate_run, "run", lambda arguments: {}["key"])
    code, out, err = cmlora("generate", "-p", "x")
    assert code == 1 and not out
    assert err == "error: KeyError: 'key' (--debug shows the traceback)\n"


def test_a_process_leaves_one_document_on_stdout_and_no_chatter(model, loras, tmp_path):
    command = [sys.executable, "-c", "from cmlora_fast.cli import main; raise SystemExit(main())"]
    options = ["--model", model, "--lora", loras["character_1"], "-p", "a fox", "--steps", "2"]
    size = ["--height", "64", "--width", "64", "--out", tmp_path / "fox.png", "--json"]
    done = subprocess.run(
        [*map(str, [*command, "generate", *options, *size])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == [str(tmp_path / "fox.png")]
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert all("denoising" in line for line in lines), done.stderr  # the bar and nothing else
