"""Floor 3: how checkpoints of each family map to canonical tensors; one file per layout family, layouts in words."""
