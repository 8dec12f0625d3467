"""The two roles, starter and secondary, composed from the packages below."""
