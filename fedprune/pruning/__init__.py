"""Pruners: a weight and its calibration statistics in, a mask out."""
