"""The detector: encoder, mask head, score head, LoRA, losses; how it is built, loaded and saved."""

from lib.model.detector import DistortionDetector, Prediction

__all__ = ["DistortionDetector", "Prediction"]
