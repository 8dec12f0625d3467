"""Files and options -> frozen dataclasses, with all their checks."""
