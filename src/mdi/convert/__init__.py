"""Any form of a model -> a litGPT folder."""
