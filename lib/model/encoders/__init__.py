"""The pretrained encoders, the text they read, and how they are loaded."""
