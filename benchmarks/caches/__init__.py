"""Which cache: features, forecast or relay, beside fewer steps at the same cost."""
