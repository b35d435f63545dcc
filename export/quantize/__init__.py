"""Profiles, rotation, and the number formats of quantized weights."""
