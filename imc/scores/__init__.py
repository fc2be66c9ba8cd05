"""What a trained model says about images, and how good that is."""
