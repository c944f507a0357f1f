"""Autoregressive models: an exact likelihood, and sampling value by value through decode programs."""
