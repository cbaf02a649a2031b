"""Corruptions of images, one file each, after ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261)."""
