"""A model behind an OpenAI-compatible endpoint: a queue, limits, and a graceful end."""
