"""The nets beside the original one, which stands in the main notebook."""

from helpers.nets import models, patient
