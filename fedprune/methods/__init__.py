"""The four federated methods, a room each, and the aggregation maths that they share."""
