"""A run as a folder: what is in it, on which images, how it goes on, and several of them."""
