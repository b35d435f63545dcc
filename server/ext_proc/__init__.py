"""The moderation sidecar: an Envoy external processor that judges what an OpenAI-compatible LLM reads and writes."""
