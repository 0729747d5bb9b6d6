"""Structural distortions in AI-generated images: data, model, losses, training, evaluation, analysis.

The notebooks in `notebooks/` are the way in; this package holds what they share. `python -m lib.pipeline` runs
them in order.
"""

__version__ = "0.1.0"
