"""What runs beside the SuperLink: configuration, strategy, export, evaluation, results."""
