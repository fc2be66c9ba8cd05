"""The loop of updates and what it stands on: optimiser, CUDA graph, ranks, monitor, checkpoints."""
