"""The exported model on disk. ``open_bundle`` verifies everything before ONNX Runtime sees a byte."""

from guard.bundle.open import Bundle, open_bundle, read_manifest
from guard.bundle.signature import BundleKey

__all__ = ["Bundle", "BundleKey", "open_bundle", "read_manifest"]
