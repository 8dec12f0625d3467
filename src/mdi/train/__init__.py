"""Texts -> tokens in files, and models trained on them."""
