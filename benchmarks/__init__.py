"""The benchmark anyone can run: `make bench`. See benchmarks/README.md."""
