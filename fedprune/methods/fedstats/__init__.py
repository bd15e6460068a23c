"""FedStats: clients send sums of squared inputs, the server prunes as with all their texts."""
