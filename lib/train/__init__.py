"""The training loop and what surrounds it: steps, stages, checkpoints, processes, logs."""
