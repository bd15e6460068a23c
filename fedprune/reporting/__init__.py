"""What a run leaves behind: ledger, progress lines, results and tables."""
