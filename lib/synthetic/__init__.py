"""Procedural images with local structural distortions, in the challenge's own format.

Figures and structured things, painted twice: sound and with damaged parts. What differs is the true region;
imaginary annotators mark it with jitter and misses and vote for the score. `write_dataset` writes the folders
that the rest of the project reads; `make_sample` gives one image with the region that changed.
"""

from lib.synthetic.damage import KINDS
from lib.synthetic.sample import Sample, make_sample
from lib.synthetic.writer import write_dataset

__all__ = ["KINDS", "Sample", "make_sample", "write_dataset"]
