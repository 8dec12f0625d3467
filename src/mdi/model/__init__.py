"""A span of layers and its KV slots, as fast as the device allows."""
