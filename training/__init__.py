"""Trains the embedded guard: a LoRA and an output head over SmolLM2-135M-Instruct. Not part of any wheel."""
