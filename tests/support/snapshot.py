"""What a pipeline is made of, to be compared before and after."""

import inspect

import torch

HOOKS = [name for name in vars(torch.nn.Module()) if name.endswith("_hooks")]


def models(pipe):
    return {k: v for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)}


def snapshot(pipe) -> dict:
    """Parameters, buffers, hooks, every attribute name and every instance-level callable."""
    state = {"pipe": set(vars(pipe)), "scheduler": set(vars(pipe.scheduler)), "modules": {}}
    for part, model in models(pipe).items():
        for name, module in model.named_modules():
            state["modules"][part, name] = dict(
                type=type(module),
                attributes=set(vars(module)),
                callables={k: id(v) for k, v in vars(module).items() if inspect.isroutine(v)},
                hooks={hook: list(vars(module)[hook]) for hook in HOOKS if hook in vars(module)},
                children={k: id(v) for k, v in module._modules.items()},
                training=module.training,
                scaling=dict(getattr(module, "scaling", {})),
                active=list(vars(module).get("_active_adapter", [])),
            )
            processor = getattr(module, "processor", None)
            state["modules"][part, name]["processor"] = id(processor) if processor else None
        state[part] = {
            name: (tensor.data_ptr(), tensor.requires_grad, tensor.detach().clone())
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
    return state


def assert_equal(now: dict, before: dict) -> None:
    assert now["pipe"] == before["pipe"]
    assert now["scheduler"] == before["scheduler"]
    assert now["modules"].keys() == before["modules"].keys()
    for where, attributes in before["modules"].items():
        assert now["modules"][where] == attributes, where
    for part in before.keys() - {"pipe", "scheduler", "modules"}:
        assert now[part].keys() == before[part].keys()
        for name, (pointer, grad, tensor) in before[part].items():
            assert now[part][name][:2] == (pointer, grad), (part, name)
            assert torch.equal(now[part][name][2], tensor), (part, name)
