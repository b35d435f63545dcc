"""What text generation does on this machine: streams together, long prompts, prompt lookup, memory, agreement."""
