"""Answering questions with a trained model and its controls, scoring the answers, showing them."""
