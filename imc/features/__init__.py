"""Features by a frozen encoder, or made elsewhere: a data set whose samples are vectors, and their views."""
