"""What is on the canvas: slides, maps and regions as layers, and how they are drawn. Without Qt."""
