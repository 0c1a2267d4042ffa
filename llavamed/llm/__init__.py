"""The one client of OpenAI-compatible endpoints."""
