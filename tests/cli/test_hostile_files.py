"""Keys, metadata and paths are shown as text: no terminal obeys them, no markup is made of them."""

import pytest
import torch
from cmlora_fast.report import print_table, printable, progress
from safetensors.torch import save_file

from ..support.damaged_files import DAMAGED

CLEAR, TITLE = "\x1b[2J\x1b[H", "\x1b]0;mine\x07"
EVIL = {
    "escapes": f"a{CLEAR}{TITLE}b",
    "C1 controls": "a\x9b2Jb\x9d0;x\x9cb",
    "overwriting": "good\r\x08\x7fbad\x00",
    "direction": "a‮txt.exe‬",
    "line ends": "a\u2028b\x0bc\x0c",
    "half a character": "\ud800",
}
MARKUP = ["x[/b]", "x[red]y[/red]", "x[bold", "[link=http://x]y", ":smile:", "[[]]", "x\\[b]"]


def plain(text):
    """Nothing but what a terminal prints, and ends of lines."""
    return all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("name", EVIL)
def test_text_is_written_out(name):
    assert (
        printable(EVIL[name]).isprintable()
        and printable("é 漢\u3000字 \xa0x") == "é 漢\u3000字 \xa0x"
    )


def _layer(stem):
    return {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(3, 2)}


@pytest.mark.parametrize("name", [n for n in EVIL if n != "half a character"])
@pytest.mark.parametrize("place", ["key", "metadata name", "metadata", "other key", "NaN"])
def test_inspect_shows_no_escape_of_a_file(cmlora, tmp_path, model, place, name):
    text, path = EVIL[name], tmp_path / "x.safetensors"
    tensors = _layer(f"unet.{text}" if place in ("key", "NaN") else "unet.a")
    if place == "NaN":
        tensors = {key: tensor * float("nan") for key, tensor in tensors.items()}
    if place == "other key":
        tensors[f"{text}.bundle"] = torch.ones(2)
    pair = {"metadata name": (text, "x"), "metadata": ("x", text)}.get(place, ("x", "y"))
    save_file(tensors, path, metadata=dict([pair]))
    for arguments in ([], ["--model", model], ["--json"]):
        _, out, err = cmlora("lora", "inspect", path, *arguments)
        assert plain(out) and plain(err) and out
    _, out, err = cmlora("generate", "-p", "x", "--lora", path, "--model", model)
    assert plain(out) and plain(err) and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", MARKUP)
def test_brackets_in_a_path_are_no_markup(cmlora, tmp_path, model, name):
    folder = tmp_path / name.replace("/", "∕")
    path = folder / "x[b].safetensors"
    folder.mkdir()
    save_file(_layer("unet.a"), path, metadata={name: name})
    code, out, err = cmlora("lora", "inspect", path)
    assert (code, err) == (0, "") and f"metadata {name} " in out and f"│ {name} " in out
    assert str(path) in "".join(out.split())  # a long title goes over several lines
    code, out, err = cmlora("lora", "inspect", path, "--model", tmp_path / name)
    assert code == 1 and str(tmp_path / name) in err
    code, _, err = cmlora("lora", "inspect", tmp_path / name)
    assert code == 1 and err.startswith(f"error: {tmp_path / name}: ")
    code, _, err = cmlora("generate", "-p", "x", "--lora", path, "--model", model)
    assert code == 1 and err.startswith(f"error: {path}: made for another architecture")


@pytest.mark.parametrize("name", MARKUP)
def test_tables_and_bars_take_text(capsys, name):
    print_table(name, [name, "x"], [[name, name]])
    with progress(2, name) as advance:
        advance(description=name)
    said = capsys.readouterr()
    assert said.out.count(name) == 4 and name in said.err


@pytest.mark.parametrize("name", EVIL)
def test_tables_and_bars_command_nothing(capsys, name):
    print_table(EVIL[name], [EVIL[name]], [[EVIL[name]]])
    with progress(2, EVIL[name]) as advance:
        advance(description=EVIL[name])
    said = capsys.readouterr()
    assert plain(said.out) and plain(said.err)


@pytest.mark.parametrize("name", DAMAGED)
def test_inspect_tells_of_damage_in_one_line(cmlora, tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    code, out, err = cmlora("lora", "inspect", path)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith(f"error: {path}: ") and message in err
