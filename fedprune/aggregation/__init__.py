"""Combine what clients send: pure functions of masks, independent of the order of arrival."""
