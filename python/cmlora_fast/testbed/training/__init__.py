"""How the embedded model was made: drawing, training, export. In the repository, not in wheels."""
