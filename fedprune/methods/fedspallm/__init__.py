"""FedSpaLLM: the mean of the survivors over the clients that kept them (arXiv 2410.14852)."""
