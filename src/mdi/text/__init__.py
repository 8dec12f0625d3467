"""Prompts and templates -> token ids; token ids -> text."""
