"""The command line in this process, and a tiny random model on disk."""

from __future__ import annotations

import pytest
from cmlora_fast.cli import main

from ..support import helpers


@pytest.fixture
def cmlora(capsys):
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A diffusers directory: the embedded model's shape, random weights."""
    folder = tmp_path_factory.mktemp("model")
    helpers.pipeline("sd", "one_layer").save_pretrained(folder)
    return folder
