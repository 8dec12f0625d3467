"""The commands that people type, one module each: arguments, read before anything slow is imported."""
