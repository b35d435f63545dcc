"""The exported model on disk. ``open_bundle`` verifies everything before ONNX Runtime sees a byte."""

from guard.bundle.open import Bundle, open_bundle, verify_bundle

__all__ = ["Bundle", "open_bundle", "verify_bundle"]
