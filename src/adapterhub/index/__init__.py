"""What an adapter hub knows: rows derived from files, and the questions asked of them."""
