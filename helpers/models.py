"""Building blocks of the nets; the nets themselves stand in the notebooks."""

from keras import layers

# Keras' default of 0.99 forgets the initial statistics only after some 500 steps: on the sample,
# validation would be worse than chance for many epochs while training goes well.
MOMENTUM = 0.9
# The smallest side that three valid 3x3 convolutions with 2x2 pooling leave a pixel of.
SMALLEST_SIDE = 22


def conv_block(filters: int, batch_norm: bool = False, dropout: float = 0.25) -> list:
    """Make a convolution block: 3x3 convolution, 2x2 max pooling, normalisation, dropout.

    Args:
        filters: number of 3x3 filters; no padding, so each side loses two pixels, then halves.
        batch_norm: put a BatchNormalization after the pooling (Ioffe & Szegedy, 2015).
        dropout: share of the activations that are set to zero in training, 0 … 1.

    Returns:
        Keras layers, in order.
    """
    normalisation = [layers.BatchNormalization(momentum=MOMENTUM)] if batch_norm else []
    return [
        layers.Conv2D(filters, 3, activation="relu"),
        layers.MaxPooling2D(2),
        *normalisation,
        layers.Dropout(dropout),
    ]


def dense_block(units: int, batch_norm: bool = False) -> list:
    """Make a hidden dense layer with ReLU, and a BatchNormalization after it if asked for."""
    normalisation = [layers.BatchNormalization(momentum=MOMENTUM)] if batch_norm else []
    return [layers.Dense(units, activation="relu"), *normalisation]
