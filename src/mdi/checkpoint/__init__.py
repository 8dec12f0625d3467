"""Model folders and their configuration, chunks, digests, the chunk cache."""
