"""Hydra's configuration groups; a package, so that the folder travels with every installation."""
