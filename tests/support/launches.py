"""The GPU's form of a step on a CPU, and what it would launch there."""

from collections import Counter

import torch
from cmlora_fast.unet import graphs, kit, layers

from . import recording

# Kernels behind one operation, where it is not one: moments, then the norm.
LAUNCHES = {"group_norm": 2}
# They compute nothing on a device.
FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach",
        "_reshape_alias", "_unsafe_view"}  # fmt: skip

LATENTS = 4  # channels


def takes(x):
    """As ``fast_on_gpu``, on any device."""
    return x.is_floating_point() and not torch.is_grad_enabled()


KIT = kit.Kit(takes, joins=True)


def pretend(monkeypatch):
    """As ``recording.pretend``, with the forms of a GPU. Returns what was recorded."""
    recordings = []

    def record(recorder, function):
        replay = recording.record(recorder, function)
        recordings.append(replay.__self__)
        return replay

    recording.pretend(monkeypatch)
    monkeypatch.setattr(layers, "kit_of", lambda device: KIT)
    monkeypatch.setattr(graphs.Recorder, "record", record)
    return recordings


def launches(calls):
    """Operations of a recording by name, as often as they launch a kernel."""
    count = Counter()
    for func, *_ in calls:
        name = func.__name__.split(".")[0]
        views = any(r.alias_info is not None and not r.alias_info.is_write
                    for r in func._schema.returns)  # fmt: skip
        if not views and name not in FREE:
            count[name] += LAUNCHES.get(name, 1)
    return count


def changes_of_layout(calls):
    """Convolutions whose image or weight does not lie channels-last, and copies that turn it so,
    but for the latents at both ends of a step.
    """
    found = []
    for func, args, _, out in calls:
        name = func.__name__.split(".")[0]
        if name == "convolution":
            found += [f"{name} of {tuple(t.shape)}" for t in args[:2] if not _channels_last(t)]
        if name in ("clone", "copy_", "_to_copy") and out.dim() == 4 and out.shape[1] > LATENTS:
            source = args[1] if name == "copy_" else args[0]
            if out.stride() != source.stride() and min(out.shape[2:]) > 1:
                found.append(f"{name} of {tuple(out.shape)}")
    return found


def _channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last)
