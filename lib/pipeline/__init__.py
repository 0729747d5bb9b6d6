"""Notebooks in order, headless, by papermill: `python -m lib.pipeline notebooks/params/demo.yaml`."""
