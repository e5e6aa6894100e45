"""What is inside the files people share: weights, cards, text, and what must not come in."""
