"""From a model, a source and a region to a prediction and its saliency maps."""
