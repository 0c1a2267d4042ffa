"""Talk to a trained model: in the terminal, by an OpenAI-compatible service, and on its page."""
