"""Diffusion, score and flow-matching models: images from noise, step by step."""
