"""Needs a GPU; each test skips with the reason where there is none."""
