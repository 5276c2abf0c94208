"""The classifier over per-field encoders; it knows feature vectors and masks, and nothing of modalities or data."""

from __future__ import annotations

from xmodal_dist.model.classifier import CrossModalClassifier, ModelSettings, Output
from xmodal_dist.model.losses import LossSum, classification_loss

__all__ = ["CrossModalClassifier", "LossSum", "ModelSettings", "Output", "classification_loss"]
