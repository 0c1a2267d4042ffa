"""Instruction dialogues from captions: ask a language model, filter what it says, keep it all."""
