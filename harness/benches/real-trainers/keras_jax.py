# Keras on jax with BackupAndRestore.
import hashlib, os, sys

os.environ["KERAS_BACKEND"] = "jax"
import keras
import numpy

directory = sys.argv[1]
keras.utils.set_random_seed(7)
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)])
model.compile("adam", "mse")
random = numpy.random.default_rng(7)
inputs, outputs = random.normal(size=(16, 8)), random.normal(size=(16, 1))
backup = keras.callbacks.BackupAndRestore(os.path.join(directory, "backup"), delete_checkpoint=False)
model.fit(inputs, outputs, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[backup])
weights = b"".join(numpy.asarray(value).tobytes() for value in model.get_weights())
print("weights", hashlib.sha256(weights).hexdigest()[:16])
