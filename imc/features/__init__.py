"""Features of images by pretrained encoders: computed, kept, written to files."""
