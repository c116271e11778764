"""A translation task small enough to learn while one watches."""
