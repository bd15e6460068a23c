"""Masks, weights and statistics to bytes and back; nothing received is unpickled or trusted."""
