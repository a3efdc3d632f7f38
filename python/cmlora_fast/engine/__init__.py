"""What ``enable`` adds to a pipeline: hooks at its border, and the run of each call."""
