"""The named images of a run as other programs read them: one file a format."""
