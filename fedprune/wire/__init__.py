"""Masks to bytes and back; nothing received is unpickled or trusted."""
