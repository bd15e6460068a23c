"""A statistic, a pruner on it and a method of one's own, in a package beside fedprune."""
