"""A run's and a sweep's results as one HTML file that needs nothing else, and as figures."""
