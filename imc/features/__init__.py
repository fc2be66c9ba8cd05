"""Features made elsewhere, or by a frozen encoder: a data set whose samples are vectors, and their views."""
