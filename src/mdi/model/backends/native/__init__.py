"""A span of blocks in one call: kernels in C++, compiled once for this CPU, and what calls them."""
