"""What computes a span: one module per backend, and the choice among them."""
