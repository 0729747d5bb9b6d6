"""A run on a split: its threshold, figures, tables of images and regions, and how it compares with others."""
