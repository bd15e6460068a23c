"""Texts to calibrate and evaluate on: where they come from and how clients share them."""
