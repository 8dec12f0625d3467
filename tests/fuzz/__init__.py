"""Fuzzing of everything that reads what others wrote: frames, HTTP requests, configurations, model files.

A target is a function of bytes that raises for anything but what it documents; it brings valid inputs to begin
with and knows how to change them without being refused at the first checksum. `make fuzz` runs each target in a
process of its own. The engine is atheris (libFuzzer) where it is installed: its bytecode instrumentation tells for
every input which branches of `mdi` it reached, at a tenth of the price of `sys.settrace`, and its timer sees hangs
in C code too. Where it is not installed, and in the test suite, the same targets get blind mutations of the valid
inputs, from a fixed seed.
"""
