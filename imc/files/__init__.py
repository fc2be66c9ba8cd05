"""Files of any kind: where they lie, written whole or not at all, and read as data whoever wrote them."""
