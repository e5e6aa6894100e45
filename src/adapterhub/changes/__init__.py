"""How do repositories change? Commits with what follows from them, pull requests, names and owners."""
