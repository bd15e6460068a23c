"""What a run leaves behind: results, ledger, status, tables, model card, tracking."""
