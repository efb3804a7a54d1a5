"""What the notebooks lean on: six rooms, data, nets, training, evaluation, plots and runs."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
# Intel's kernels: TensorFlow takes them unasked only on some processors, and is two or three times
# slower without on the others (with AVX2 only).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else it reports each missing GPU part
