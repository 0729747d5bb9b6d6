"""What surrounds the loop of `lib.training`: steps, stages, checkpoints, processes, and what a run tells."""
