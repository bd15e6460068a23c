"""FedExperts: clients send sums of what each expert gives, the server drops the least useful."""
