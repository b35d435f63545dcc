"""Functions that a model may call: checked, shown to the model, forced by a grammar, and read out of its text."""
