"""Methods: the heads on an encoder and the loss of one step."""
