"""Helpers that users of NVIDIA's code import."""
