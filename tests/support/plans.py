"""What a plan decides, read off its steps."""

H4 = ["character_1", "clothing_1", "style_1", "object_1"]
ALL5 = [*H4, "background_1"]


def dominants(run):
    return [step.early.dominant for step in run.steps]


def positions(run, order):
    return [order.index(name) for name in dominants(run)]


def full_steps(run, group):
    return [i for i, s in enumerate(run.steps) if s.early.refresh[group]]
