"""Normalizing flows: invertible transforms with log-determinants."""
