"""Images with adapters of their own, and the same images painted one by one without that."""

from contextlib import contextmanager

import cmlora_fast as cf

from .helpers import relative
from .loops import one_image, run_pipeline

BASE = "__base__"
RUN = 1e-4  # relative, along a trajectory in float32


@contextmanager
def active(pipe, entry, scales: dict[str, float]):
    """An entry's adapters are the pipeline's active ones, in its order; afterwards all are."""
    names = [entry] if isinstance(entry, str) else entry
    if entry == BASE:
        pipe.disable_lora()
    else:
        pipe.set_adapters(names, [scales[name] for name in names])
    try:
        yield
    finally:
        pipe.enable_lora()
        pipe.set_adapters([*scales], [*scales.values()])


def together(pipe, method, entries, run, **options):
    """What ``run()`` returns, each image with its entry's adapters, and the summary."""
    with cf.accelerate(pipe, method, adapter_names=entries, **options):
        return run(), cf.summary(pipe)


def alone(pipe, method, entry, scales, run, **options):
    """The same of one image, whose adapters are the pipeline's."""
    with active(pipe, entry, scales), cf.accelerate(pipe, method, **options):
        return run(), cf.summary(pipe)


def compare(pipe, method, entries, scales, inputs, weights="auto", **options):
    """Assert that each image is the one painted alone; summaries of all and of each."""
    got, summary = together(
        pipe, method, entries, lambda: run_pipeline(pipe, inputs), weights=weights, **options
    )
    singles = []
    for image, entry in enumerate(entries):
        own = one_image(inputs, image)
        want, single = alone(
            pipe, method, entry, scales, lambda own=own: run_pipeline(pipe, own), weights=weights
        )
        assert relative(got[:, image : image + 1], want) < RUN, (image, entry)
        singles.append(single)
    return summary, singles


@contextmanager
def middle_rows(pipe):
    """Rows of every call of the UNet's middle: as many calls as batches that run whole."""
    seen = []
    layer = pipe.unet.mid_block.resnets[0].conv1
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        yield seen
    finally:
        handle.remove()
