"""The state to resume from: saved, verified, kept."""
