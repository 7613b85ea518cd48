"""Running models: the reference decoder, the transformers judge with plain PyTorch hooks, and the proof of a loader."""
