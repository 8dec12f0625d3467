"""The life of a sample, and the loop that generates its tokens."""
