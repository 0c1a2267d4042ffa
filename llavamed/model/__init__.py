"""The network: Hugging Face's LLaVA, its processor, what trains, what it costs, how it is saved."""
