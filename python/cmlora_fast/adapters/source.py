"""Where LoRAs come from: a file, a folder of PEFT or diffusers, the hub."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .header import opened, read_header

__all__ = ["Source", "find_file", "is_alpha", "open_source"]

FOLDER_NAMES = ("pytorch_lora_weights", "adapter_model")
SAFETENSORS, PICKLED = ".safetensors", (".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Source:
    """One file as it is: shapes and dtypes of its tensors, metadata, and the way to read them."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    config: dict[str, Any]
    loaded: dict[str, Tensor] | None = None

    def tensors(self, *, only_alphas: bool = False) -> dict[str, Tensor]:
        """Key -> tensor, on the CPU.

        Raises:
            ValueError: One cannot be read.
        """
        if self.loaded is not None:
            return self.loaded
        with opened(self.path) as file:
            keys = [key for key in self.shapes if not only_alphas or is_alpha(key)]
            return {key: file.get_tensor(key) for key in keys}


def is_alpha(key: str) -> bool:
    return key.endswith(".alpha")


def open_source(source: str | Path) -> Source:
    """Find and read a LoRA's header; files of pickles are read whole, by ``weights_only``.

    Raises:
        ValueError: What is wrong, in one line that names the file.
    """
    path = find_file(source)
    try:
        config = _config(path.with_name("adapter_config.json"), path)
        if path.suffix in PICKLED and path.is_file():
            tensors = _unpickled(path)
            shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
            dtypes = {key: str(t.dtype).removeprefix("torch.") for key, t in tensors.items()}
            return Source(path, shapes, dtypes, {}, config, tensors)
        header = read_header(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Source(path, header.shapes, header.dtypes, header.metadata, config)


def find_file(source: str | Path) -> Path:
    """The file that is meant: itself, a folder's, or a hub repository's after its download."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _in_folder(path)
    named = path.suffix in (SAFETENSORS, *PICKLED)
    parts = str(source).split("/")
    if path.exists() or len(parts) not in (2, 3) or parts[0] in ("", ".", "..", "~"):
        return path
    if len(parts) == 2 and named:
        return path
    return _from_hub("/".join(parts[:2]), parts[2] if len(parts) == 3 else None) or path


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_NAMES:
        for suffix in (SAFETENSORS, ".bin"):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    if len(files) == 1:
        return files[0]
    raise ValueError(
        f"{folder}: is a directory of {len(files)} {SAFETENSORS} files; expected "
        f"{' or '.join(n + SAFETENSORS for n in FOLDER_NAMES)} in it, or a single file"
    )


def _from_hub(repository: str, name: str | None) -> Path | None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        if name is None:
            files = HfApi().list_repo_files(repository)
            usual = [f"{n}{SAFETENSORS}" for n in FOLDER_NAMES if f"{n}{SAFETENSORS}" in files]
            found = usual or [file for file in files if file.endswith(SAFETENSORS)]
            if len(found) != 1 and not usual:
                raise ValueError(f"{repository}: has {len(found)} {SAFETENSORS} files; name one")
            name = found[0]
        return Path(hf_hub_download(repository, name))
    except HFValidationError:
        return None
    except ValueError:
        raise
    except Exception as error:  # httpx, requests and the hub each have a family of their own
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{repository}: no such file, and not to be had from the hub: {told[0]}"
        ) from error


def _config(path: Path, beside: Path) -> dict[str, Any]:
    """PEFT's configuration beside one of its own files."""
    if not beside.name.startswith("adapter_model.") or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} beside it cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} beside it: expected an object; got {type(found).__name__}")
    return found


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot be read as plain tensors: {told[0]}") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(t, Tensor) for k, t in found.items()
    ):
        raise ValueError(f"expected names and tensors; got {type(found).__name__}")
    return found
