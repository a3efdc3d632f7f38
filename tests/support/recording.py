"""What CUDA graphs do, on a CPU: the operations of a function, run again on the same memory."""

from unittest import mock

import torch
from cmlora_fast.engine import run
from cmlora_fast.unet import graphs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Reading a number back, sizes that depend on values, tensors made on the host: nothing that a
# capture allows.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "scalar_tensor")


class Recording(TorchDispatchMode):
    """Keeps every operation inside that passes torch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        """Each operation on the tensors that it had, into the memory that its result had."""
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def waits(self):
        """Operations that wait for a device, or copy to it from memory that goes away."""
        return [str(func) for func, *_ in self.calls if func.__name__.split(".")[0] in WAITS]


def record(recorder, function):
    """For ``Recorder.record``: as a capture, except that the function's kernels do run.

    Ops of ours go through torch, as where it compiles: it sees them whole, and a replay reads their
    tables as they are by then. Where gradients are wanted, it sees their torch twins.
    """
    recording = Recording()
    compiling = mock.patch.object(
        torch.compiler, "is_compiling", lambda: not torch.is_grad_enabled()
    )
    with recording, compiling:
        function()
    assert not recording.waits()
    return recording.replay


def pretend(monkeypatch):
    """The engine takes the CPU for a GPU; record with ``backend="torch"``, which the eager steps
    then take too."""
    monkeypatch.setattr(run, "on_gpu", lambda device: True)
    monkeypatch.setattr(graphs.Recorder, "record", record)
    monkeypatch.setattr(graphs.Recorder, "records", True)
