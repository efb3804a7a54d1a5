"""What the notebooks lean on: six rooms, data, nets, training, evaluation, plots and runs."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
