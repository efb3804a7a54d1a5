"""Layers that train faster than Keras' own on a CPU, with the same variables and answers.

Keras 3 computes BatchNormalization from separate operations in float32 and draws 32 random bits for
each value that Dropout may drop. `speed_up` puts the layers below in their place for the training;
`to_keras` puts Keras' own back, so that a saved model needs nothing of this project.
"""

import keras
import tensorflow as tf
from keras import layers

from helpers.nets.models import rebuild_net


class FusedBatchNormalization(layers.BatchNormalization):
    """BatchNormalization of maps by TensorFlow's fused operation.

    Takes and gives the compute dtype; scale, offset and statistics are float32. Other inputs than
    (N, height, width, channels) are left to Keras.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalise; in training by the batch's own statistics, which the moving ones follow."""
        if len(inputs.shape) != 4 or mask is not None or not (self.scale and self.center):
            return super().call(inputs, training=training, mask=mask)
        is_training = bool(training) and self.trainable
        given = {} if is_training else {"mean": self.moving_mean, "variance": self.moving_variance}
        given = {name: tf.convert_to_tensor(value) for name, value in given.items()}
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            epsilon=self.epsilon,
            is_training=is_training,
            **given,
        )
        if is_training:
            # The operation gives the unbiased variance, Keras keeps the biased one.
            count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
            variance *= (count - 1) / count
            for moving, found in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + found * (1 - self.momentum))
        return outputs


class ByteDropout(layers.Dropout):
    """Dropout whose masks take 8 random bits for each value, so that rates are exact to 1/256."""

    def call(self, inputs, training=False):
        """Drop in training; what is kept grows so that the mean stays."""
        dropped = round(256 * self.rate)
        if self.noise_shape is not None or dropped == 256:
            return super().call(inputs, training=training)
        if not training or not dropped:
            return inputs
        shape = tf.shape(inputs)
        words = (tf.size(inputs) + 3) // 4
        seed = tf.cast(self.seed_generator.next(), tf.int32)
        drawn = tf.random.stateless_uniform([words], seed, None, None, tf.uint32)
        drawn = tf.reshape(tf.bitcast(drawn, tf.uint8), [-1])[: tf.size(inputs)]
        keep = tf.cast(tf.reshape(drawn, shape) >= tf.constant(dropped, tf.uint8), inputs.dtype)
        return inputs * (keep * tf.cast(256 / (256 - dropped), inputs.dtype))


FAST = {layers.BatchNormalization: FusedBatchNormalization, layers.Dropout: ByteDropout}


def speed_up(model: keras.Model) -> keras.Model:
    """Copy a net with the layers of this module in the place of Keras' own.

    Takes a Sequential or Functional net, perhaps with others nested in it. The copy has the same
    name, variables and answers; compile it anew.
    """
    return _swap(model, FAST)


def to_keras(model: keras.Model) -> keras.Model:
    """Copy a net with Keras' own layers in the place of those of this module, not compiled."""
    copy = _swap(model, {fast: plain for plain, fast in FAST.items()})
    given = copy.input if len(copy.inputs) > 1 else copy.inputs[0]
    return keras.Model(given, copy.outputs[0], name=model.name)


def _swap(model: keras.Model, others: dict[type, type]) -> keras.Model:
    return rebuild_net(
        model, lambda layer, config: others.get(type(layer), type(layer)).from_config(config)
    )
