"""What runs beside private data: handlers, and the node's pruning session."""
