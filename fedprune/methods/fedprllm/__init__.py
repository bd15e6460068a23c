"""FedPrLLM: clients vote with masks, the server prunes the most voted weights (2505.13547)."""
