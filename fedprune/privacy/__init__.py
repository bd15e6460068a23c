"""What an answer reveals of the texts that it was made of."""
