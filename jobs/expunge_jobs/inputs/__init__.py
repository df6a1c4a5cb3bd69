"""What an address outside the store means, and the digest that pins it."""
