"""The data: from a folder to one table, a row per image, and one array of pixels."""

from helpers.data import files, images, reading, sample, splits
