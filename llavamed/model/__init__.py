"""The network: Hugging Face's LLaVA, what trains, what it costs, and how it is exported."""
