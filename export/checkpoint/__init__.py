"""Source checkpoints: whatever they are on disk, the exporter sees ``export.checkpoint.model.Checkpoint``."""
