"""From the challenge's files to the tensors that training takes: checked, prepared, augmented, batched."""
