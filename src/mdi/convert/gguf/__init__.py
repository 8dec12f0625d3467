"""A GGUF file -> a litGPT folder."""
